"""Counts the bytes that are alive while a network trains, of real tensors or of fake ones without memory.

torch's own `MemTracker` counts the same on plain networks, to the byte (tests). It is not used, because it
goes on counting tensors that reversible chains make and give back.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from revsurgeon.memory.roofline import Work

CATEGORIES = ("parameters", "gradients", "optimizer", "inputs", "activations", "temporaries")
"""What memory is for. Activations are what the forward pass makes; temporaries what comes later and is no
gradient of a parameter. Inputs have the network's buffers with them."""

_OF_PHASE = {"forward": "activations", "backward": "temporaries", "optimizer": "temporaries"}


@dataclass(frozen=True)
class Peak:
    """The moment at which most bytes were alive.

    Attributes:
        total: bytes.
        parts: bytes by category.
        phase: "forward", "backward" or "optimizer".
        module: path of the module that was at work.
    """

    total: int
    parts: Mapping[str, int]
    phase: str
    module: str


@dataclass
class _Storage:
    category: str
    size: int
    reference: weakref.ref[torch.UntypedStorage]


class Tracker(TorchDispatchMode):
    """A mode under which every tensor that an operator makes is counted until its memory is given back.

    Not seen is what a kernel takes and gives back within one operator, such as a convolution's workspace.

    Args:
        shares: the part of a category that is on this device, where states are sharded; 1 where not named.
        quantum: the allocator hands out multiples of so many bytes.
        where: gives the path of the module at work.
    """

    def __init__(
        self, *, shares: Mapping[str, float] | None = None, quantum: int = 1, where: Any = lambda: ""
    ) -> None:
        super().__init__()
        self.phase = "forward"
        self.peak = Peak(0, dict.fromkeys(CATEGORIES, 0), "forward", "")
        self.work = Work()
        self._shares = {category: (shares or {}).get(category, 1.0) for category in CATEGORIES}
        self._quantum = quantum
        self._where = where
        self._live: dict[int, _Storage] = {}
        self._totals = dict.fromkeys(CATEGORIES, 0)
        self._alive = 0.0
        self.working = 0  # the most activations and temporaries that were alive at one time

    def totals(self) -> dict[str, int]:
        """Bytes that are alive now, by category."""
        return {category: round(n * self._shares[category]) for category, n in self._totals.items()}

    def adopt(self, tensors: Iterable[torch.Tensor], category: str) -> None:
        """Count tensors that were there before, or say what tensors that were counted are for."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._live:
                self._add(self._live[key].category, -self._live[key].size)
                self._live[key].category = category
                self._add(category, self._live[key].size)
            else:
                self._see(tensor, category)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, _OF_PHASE[self.phase])
            elif isinstance(leaf, (tuple, list, dict)):
                for inner in pytree.tree_leaves(leaf):
                    if isinstance(inner, torch.Tensor):
                        self._see(inner, _OF_PHASE[self.phase])
        self.work.add(func, args, kwargs or {}, result)
        return result

    def _see(self, tensor: torch.Tensor, category: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = -(-storage.nbytes() // self._quantum) * self._quantum

        def gone(_: Any) -> None:
            entry = self._live.pop(key, None)
            if entry is not None:
                self._add(entry.category, -entry.size)

        self._live[key] = _Storage(category, size, weakref.ref(storage, gone))
        self._add(category, size)

    def _add(self, category: str, size: int) -> None:
        self._totals[category] += size
        self._alive += size * self._shares[category]
        if size > 0 and category in ("activations", "temporaries") and self.phase != "optimizer":
            self.working = max(self.working, self._totals["activations"] + self._totals["temporaries"])
        if self._alive > self.peak.total:
            self.peak = Peak(round(self._alive), self.totals(), self.phase, self._where())


@dataclass
class Whereabouts:
    """Which module is at work, in forward, in backward and where a backward computes something again.

    Global hooks, because hooks on the modules themselves would change how a rewired block is cut. In backward
    the module is the one whose output's gradient was last asked for.
    """

    paths: Mapping[int, str]
    stack: list[str] = field(default_factory=list)
    behind: str = ""
    _handles: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, network: torch.nn.Module) -> Whereabouts:
        """Of a network's modules."""
        return cls({id(module): path for path, module in network.named_modules()})

    def __call__(self) -> str:
        """Path of the module at work."""
        return self.stack[-1] if self.stack else self.behind

    def __enter__(self) -> Whereabouts:
        hooks = torch.nn.modules.module
        self._handles = [
            hooks.register_module_forward_pre_hook(self._before),
            hooks.register_module_forward_hook(self._after, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: torch.nn.Module, args: Any) -> None:
        self.stack.append(self.paths.get(id(module), self()))

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        path = self.stack.pop()
        handed_on = {id(leaf) for leaf in args if isinstance(leaf, torch.Tensor)}
        for leaf in pytree.tree_leaves(output):
            # What hands its input on, as switched-off dropout does, takes no part in the backward pass.
            if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None and id(leaf) not in handed_on:
                leaf.grad_fn.register_prehook(lambda _, path=path: self._enter_backward(path))

    def _enter_backward(self, path: str) -> None:
        self.behind = path
