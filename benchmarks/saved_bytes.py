"""Count what one forward keeps for its backward, in two ways that share nothing.

*Saved*: every storage that autograd is asked to save, once, as `saved_tensors_hooks` shows it. Parameters and
their views are not counted: they exist anyway. (So do buffers, but what backward reads of them is counted.)
What the hooks do not see is a tensor that a function keeps as an attribute, such as the random states that
activation checkpointing and revsurgeon keep to replay dropout.

*Held*: what torch's allocator handed out during the forward and has not got back when it is over. Nothing
that holds memory escapes this, but it also counts the output itself, and it exists on the CPU only through
the profiler. The two together say whether `saved` can be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

ALLOCATION = "[memory]"
"""Name of the profiler's events that are an allocation or, with negative bytes, its end."""


@dataclass(frozen=True)
class Kept:
    """Bytes that one forward keeps until its backward.

    Attributes:
        saved: of the whole network, through autograd's hooks.
        in_chains: of these, the storages that were first saved inside a chain.
        held: of the whole network, as the allocator counts; None where it was not asked.
    """

    saved: int
    in_chains: int
    held: int | None


def count_kept(
    network: nn.Module, inputs: Any, chains: Sequence[tuple[str, str]], *, allocator: bool = True
) -> Kept:
    """Run one forward in the network's present mode and count what it keeps.

    Args:
        network: on the CPU.
        inputs: a tuple of positional or a dict of keyword arguments.
        chains: paths of the first and the last block of every chain.
        allocator: also count what is held, which takes a second forward.
    """
    whole, inside = _saved(network, inputs, chains)
    return Kept(whole, inside, _held(network, inputs) if allocator else None)


def _saved(network: nn.Module, inputs: Any, chains: Sequence[tuple[str, str]]) -> tuple[int, int]:
    owned = {t.untyped_storage()._cdata for t in network.parameters()}
    seen: dict[int, tuple[int, bool]] = {}
    kept: list[torch.UntypedStorage] = []  # so that no address is given out twice while we count
    depth = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned and storage._cdata not in seen:
            seen[storage._cdata] = storage.nbytes(), depth[0] > 0
            kept.append(storage)
        return tensor

    with _inside(network, chains, depth), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = call(network, inputs)
    del output
    return sum(size for size, _ in seen.values()), sum(size for size, inside in seen.values() if inside)


def _held(network: nn.Module, inputs: Any) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        output = call(network, inputs)
    allocated = sum(event.nbytes() for event in _allocations(profiler))
    del output
    return allocated


def _allocations(profiler: torch.profiler.profile) -> Iterator[Any]:
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    return (e for e in profiler.profiler.kineto_results.events() if e.name() == ALLOCATION)


def call(network: nn.Module, inputs: Any) -> torch.Tensor:
    """The network's first output tensor, with its graph."""
    output = network(**inputs) if isinstance(inputs, dict) else network(*inputs)
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor))


@contextmanager
def _inside(network: nn.Module, chains: Sequence[tuple[str, str]], depth: list[int]) -> Iterator[None]:
    """Count up `depth` while a chain runs: from its first block's call to its last block's return."""

    def move(by: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            depth[0] += by

        return hook

    handles = []
    for first, last in chains:
        handles.append(network.get_submodule(first).register_forward_pre_hook(move(1)))
        handles.append(network.get_submodule(last).register_forward_hook(move(-1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
