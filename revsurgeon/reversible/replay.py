"""Run a segment a second time exactly as it ran first: random numbers, autocast and buffers.

The first run notes what the second one needs. The second one leaves no trace: the global random state
moves on as in a conventional step, and running statistics move once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from revsurgeon.errors import ChainBrokenError

BufferKey = tuple[int, str]

Slot = tuple[Any, Any, Any]
"""A dictionary or a list, a key or an index, and what is there."""


@dataclass
class RandomStates:
    """States of the generators that a segment may draw from: the CPU's and one accelerator's."""

    cpu: torch.Tensor
    device: torch.device
    accelerator: torch.Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> RandomStates:
        """The states at this moment, for a segment whose stream is on `device`."""
        module = _device_module(device)
        return cls(torch.get_rng_state(), device, module.get_rng_state(device) if module else None)

    def restore(self) -> None:
        """Set the generators back."""
        torch.set_rng_state(self.cpu)
        module = _device_module(self.device)
        if module and self.accelerator is not None:
            module.set_rng_state(self.accelerator, self.device)

    def digest(self) -> int:
        """A number that differs when the states do."""
        return hash(tuple(s.numpy().tobytes() for s in (self.cpu, self.accelerator) if s is not None))

    def equals(self, other: RandomStates) -> bool:
        """Whether nothing was drawn in between."""
        if not torch.equal(self.cpu, other.cpu):
            return False
        if self.accelerator is None or other.accelerator is None:
            return True
        return torch.equal(self.accelerator, other.accelerator)


def _device_module(device: torch.device) -> Any:
    if device.type in ("cpu", "meta"):
        return None
    module = torch.get_device_module(device)
    return module if hasattr(module, "get_rng_state") else None


_PLAIN = frozenset({bool, int, float, str, type(None)})

_TORCHS = frozenset(vars(nn.Module()))
"""Attributes that torch keeps its own things in."""

_NOTHING = object()


@dataclass
class ChangingBuffers:
    """Which buffers a segment's forward changes, by the training flags of the modules that own them.

    It is learned by comparing values when the segment first runs with these flags: batch norm changes its
    running statistics without counting up their version.
    """

    known: dict[tuple[bool, ...], set[BufferKey]] = field(default_factory=dict)


@dataclass
class Replay:
    """What one run of a segment needs to be repeated.

    Attributes:
        random: the generators' states before it, or None when it drew nothing.
        random_after: digest of the states behind it.
        autocast: (device type, enabled, dtype) for every device type that matters.
        buffers: (owner's dictionary, name, value before the run) of every buffer that it changed.
        tensors: (owner's dictionary, name, tensor) of its parameters and of the buffers that it only read.
        versions: of the buffers that it only read, and of tensors that are plain attributes.
        attributes: what modules keep in training flags, numbers, tensors and other plain values.
    """

    random: RandomStates | None = None
    random_after: int = 0
    autocast: tuple[tuple[str, bool, torch.dtype], ...] = ()
    autocast_cache: bool = True
    buffers: list[tuple[dict[str, Any], str, torch.Tensor]] = field(default_factory=list)
    tensors: list[tuple[dict[str, Any], str, torch.Tensor]] = field(default_factory=list)
    versions: list[tuple[str, torch.Tensor, int]] = field(default_factory=list)
    attributes: list[Slot] = field(default_factory=list)

    @contextlib.contextmanager
    def noting(
        self, modules: Collection[nn.Module], device: torch.device, changing: ChangingBuffers
    ) -> Iterator[None]:
        """Run the segment for the first time inside this context."""
        self.attributes = _attributes(modules)
        kept = [(str(name), value) for _, name, value in self.attributes if type(value) not in _PLAIN]
        self.versions = [(name, t, t._version) for name, value in kept for t in _tensors(value)]
        self.tensors = [
            (module._parameters, name, parameter)
            for module in modules
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        types = ("cpu",) if device.type == "cpu" else ("cpu", device.type)
        self.autocast = tuple((t, torch.is_autocast_enabled(t), torch.get_autocast_dtype(t)) for t in types)
        self.autocast_cache = torch.is_autocast_cache_enabled()
        states = RandomStates.now(device)
        owners = [module for module in modules if module._buffers]
        flags = tuple(module.training for module in owners)
        known = changing.known.get(flags)
        before = [
            (module._buffers, name, buffer, buffer._version, (id(module), name))
            for module in owners
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        copies = {key: b.clone() for _, _, b, _, key in before if known is None or key in known}
        yield
        after = RandomStates.now(device)
        if not states.equals(after):
            self.random, self.random_after = states, after.digest()
        if known is None:
            moved = {
                key[0]
                for owner, name, buffer, _, key in before
                if owner.get(name) is not buffer or not torch.equal(copies[key], buffer)
            }
            # All buffers of a module that changes one: a running mean of zeros may move only later.
            known = changing.known[flags] = {key for *_, key in before if key[0] in moved}
        for owner, name, buffer, version, key in before:
            if key in known:
                self.buffers.append((owner, name, copies[key]))
            elif owner.get(name) is not buffer or buffer._version != version:
                known.add(key)
                raise ChainBrokenError(
                    "a buffer changed that did not change when the segment first ran.",
                    where=name,
                    hint="Run the step again: from now on the buffer is kept.",
                )
            else:
                self.tensors.append((owner, name, buffer))
                self.versions.append((name, buffer, version))

    @contextlib.contextmanager
    def again(self, device: torch.device) -> Iterator[None]:
        """Run the segment once more inside this context.

        Raises:
            ChainBrokenError: it cannot be repeated, or did not draw the same random numbers.
        """
        self._check_versions()
        # Others than the forward's: behind torch.func.functional_call, say, they are the module's own again.
        others = [slot for slot in (*self.tensors, *self.attributes) if _held(*slot[:2]) is not slot[2]]
        for _, name, value in others:
            _check_in_memory(name, value)
        present = [(owner, name, _held(owner, name)) for owner, name, _ in (*self.buffers, *others)]
        now = RandomStates.now(device) if self.random else None
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self.autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(
                        torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.autocast_cache)
                    )
            try:
                if self.random:
                    self.random.restore()
                for owner, name, kept in self.buffers:
                    owner[name] = kept.clone()
                for slot in others:
                    _put(*slot)
                yield
                if self.random and RandomStates.now(device).digest() != self.random_after:
                    raise ChainBrokenError(
                        "a segment drew other random numbers in the backward pass than in the forward pass.",
                        hint="Something else drew from the global generator meanwhile: another thread, or a "
                        "hook inside the segment that draws at times only.",
                    )
            finally:
                for slot in present:
                    _put(*slot)
                if now:
                    now.restore()

    def _check_versions(self) -> None:
        for name, tensor, version in self.versions:
            if tensor._version != version:
                raise ChainBrokenError(
                    "a tensor that a module keeps was changed in place between forward and backward.",
                    where=name,
                    hint="Run backward before what changes it: loading weights, say, or another forward.",
                )


def _attributes(modules: Collection[nn.Module]) -> list[Slot]:
    """What modules keep in plain attributes, and in lists and dictionaries that are attributes."""
    slots: list[Slot] = []
    for own in map(vars, modules):
        for name, value in own.items():  # a loop of every step: most values end at the first comparison
            if type(value) in _PLAIN:
                slots.append((own, name, value))
            elif name in _TORCHS:
                continue
            elif type(value) in (list, dict):
                entries = list(enumerate(value) if type(value) is list else value.items())
                if all(_is_plain(entry) for _, entry in entries):
                    slots.append((own, name, value))
                    slots += [(value, key, entry) for key, entry in entries]
            elif _is_plain(value):
                slots.append((own, name, value))
    return slots


def _is_plain(value: Any) -> bool:
    """A value without a graph, which would keep the chain alive that it leads to."""
    kind = type(value)
    if kind is tuple:
        return all(map(_is_plain, value))
    return kind in _PLAIN or (kind is torch.Tensor and value.grad_fn is None)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that a plain value is made of, as far as they count their changes."""
    if type(value) is tuple:
        for entry in value:
            yield from _tensors(entry)
    elif type(value) is torch.Tensor and not value.is_inference():
        yield value


def _held(owner: Any, key: Any) -> Any:
    """What is in a slot now."""
    if type(owner) is not list:
        return owner.get(key, _NOTHING)
    if key >= len(owner):
        raise ChainBrokenError(
            "a list that a module keeps got shorter between forward and backward.",
            hint="Run backward before it is changed.",
        )
    return owner[key]


def _put(owner: Any, key: Any, value: Any) -> None:
    if value is not _NOTHING:
        owner[key] = value
    else:
        owner.pop(key, None)


def _check_in_memory(name: Any, value: Any) -> None:
    """Refuse to put back a tensor whose memory was freed."""
    if isinstance(value, torch.Tensor) and value.numel() and not value.untyped_storage().size():
        raise ChainBrokenError(
            "a tensor that the forward used is no longer in memory.",
            where=str(name),
            hint="A sharded parameter is only there while its block runs: let the loss depend on the output.",
        )
