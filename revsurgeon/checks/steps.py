"""One forward, or one forward and backward, and everything that it left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.rewiring.measure import Arguments, in_mode, projection, same_bits, tensors_of

NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""What a network raises that cannot be run in some way."""


def refusal(error: Exception) -> str:
    """Why a network cannot be run in some way, on one line; a full memory is no such reason and is raised."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        raise error
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@dataclass
class Ran:
    """What a run gave and left.

    Attributes:
        outputs: all tensors of the network's output.
        gradients: by parameter's name, or "input: NAME".
        buffers: by name, as the run left them.
        random: the state of the CPU's generator behind it.
    """

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    random: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def forward(model: nn.Module, arguments: Arguments, *, training: bool = False, seed: int = 0) -> Ran:
    """Run a forward alone; buffers and random state are put back.

    As networks are used: in training mode with gradients enabled, though nothing is kept for them.
    """
    kept_nowhere = torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda _: torch.empty(0))
    with running(model, training=training, seed=seed), torch.set_grad_enabled(training), kept_nowhere:
        outputs = tensors_of(model(*arguments[0], **arguments[1]))
        return Ran([o.detach().clone() for o in outputs], {}, _buffers(model), torch.get_rng_state())


def step(
    model: nn.Module,
    arguments: Arguments,
    *,
    training: bool = False,
    seed: int = 0,
    autocast: torch.dtype | None = None,
) -> Ran:
    """Forward and backward of a fixed projection of the outputs.

    The network's own gradients, its buffers and the random state are put back.

    Args:
        model: any network.
        arguments: of its forward; gradients by the floating ones are taken too.
        training: in training mode.
        seed: of everything that is drawn.
        autocast: run the forward, and only the forward, under autocast to this dtype.
    """
    wanted: dict[str, torch.Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    leaves, spec = pytree.tree_flatten(arguments)
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            leaves[number] = wanted[f"input: {number}"] = leaf.detach().clone().requires_grad_()
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    device = next((p.device.type for p in wanted.values()), "cpu")
    casting = torch.autocast(device, dtype=autocast) if autocast else contextlib.nullcontext()
    with running(model, training=training, seed=seed), torch.enable_grad():
        with casting:
            output = model(*args, **kwargs)
        loss = projection(output)
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        found = {name: g for name, g in zip(wanted, gradients, strict=True) if g is not None}
        outputs = [o.detach() for o in tensors_of(output)]
        return Ran(outputs, found, _buffers(model), torch.get_rng_state())


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()} if model.training else {}


@contextlib.contextmanager
def running(model: nn.Module, *, training: bool = False, seed: int = 0) -> Iterator[None]:
    """Have a network in a mode and the random state at a seed; its buffers and both are put back behind."""
    with in_mode(model, training), _left_as_it_was(model):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    owners = [m._buffers for m in model.modules()] if model.training else []
    kept = [(o, n, b, b.detach().clone()) for o in owners for n, b in o.items() if b is not None]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for owner, name, buffer, value in kept:
                    owner[name] = buffer.copy_(value)


def error(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """0 where both are equal bit for bit, else ``||actual - expected|| / ||expected||``, at least one ulp."""
    if len(actual) != len(expected):
        return float("inf")
    if all(map(same_bits, actual, expected)):
        return 0.0
    if any(a.shape != e.shape for a, e in zip(actual, expected, strict=True)):
        return float("inf")
    difference = norm = 0.0
    for a, e in zip(actual, expected, strict=True):
        a, e = a.detach().double(), e.detach().double()
        difference += float((a - e).square().sum())
        norm += float(e.square().sum())
    relative = (difference / norm) ** 0.5 if norm else difference**0.5
    # What is not equal is not 0, also where squares are too small to be told from it, or where -0 meets 0.
    return max(relative, torch.finfo(torch.float64).tiny)


def argument_cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """The same arguments with every floating tensor in `dtype`."""

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    found: Any = pytree.tree_map_only(torch.Tensor, cast, arguments)
    return found
