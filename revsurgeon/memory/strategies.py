"""The ways to train a network that are put side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn
from torch.utils.checkpoint import checkpoint

from revsurgeon.errors import UsageError
from revsurgeon.reversible.coefficients import chains, some_chains
from revsurgeon.rewiring.unrewired import rewired_forwards, unrewired

CHUNKS = 8
"""Pieces in which the chunked row runs what treats every place alike."""


@dataclass(frozen=True)
class Strategy:
    """One way.

    Attributes:
        name: as on the command line.
        title: for people.
        reversible: whether the rewired network is trained; otherwise the source network is.
    """

    name: str
    title: str
    reversible: bool = True


STRATEGIES = {
    s.name: s
    for s in (
        Strategy("stored", "stored", reversible=False),
        Strategy("checkpoint", "checkpoint, a block each", reversible=False),
        Strategy("float", "reversible, float"),
        Strategy("exact", "reversible, exact"),
        Strategy("chunked", f"reversible, exact, {CHUNKS} chunks"),
        Strategy("re2", "reversible, re2"),
    )
}


@dataclass(frozen=True)
class Point:
    """Where the coefficients stand for float, exact and chunked; re2 is at (0, 1)."""

    alpha: float
    beta: float


def chosen(names: Sequence[str] | None) -> list[Strategy]:
    """The strategies of these names, all if there are none.

    Raises:
        UsageError: another name.
    """
    for name in names or ():
        if name not in STRATEGIES:
            raise UsageError(f"strategy {name!r} is not known.", hint="Known: " + ", ".join(STRATEGIES))
    return [s for s in STRATEGIES.values() if not names or s.name in names]


@contextmanager
def training_by(network: nn.Module, strategy: Strategy, point: Point) -> Iterator[None]:
    """Have a rewired network train in one way inside this context.

    Args:
        network: rewired.
        strategy: the way.
        point: the coefficients of a reversible way.
    """
    if not strategy.reversible:
        blocks = blocks_of(network) if strategy.name == "checkpoint" else []
        with unrewired(network), ExitStack() as stack:
            stack.enter_context(_checkpointed([network.get_submodule(path) for path in blocks]))
            yield
        return
    found = some_chains(network)
    before = [(c.alpha, c.beta, c.arithmetic, c.chunks, c.anchors) for c in found]
    try:
        for chain in found:
            if strategy.name == "re2":
                chain.set(0.0, 1.0)
            else:
                chain.set(point.alpha, point.beta)
            chain.arithmetic = "float" if strategy.name in ("float", "re2") else "exact"
            chain.chunks = CHUNKS if strategy.name == "chunked" else 1
        yield
    finally:
        for chain, values in zip(found, before, strict=True):
            chain.alpha, chain.beta, chain.arithmetic, chain.chunks, chain.anchors = values


@contextmanager
def _checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Put torch's checkpoint around every one of some blocks, inside this context."""
    before = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.__dict__["forward"] = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            del block.__dict__["forward"]
            if forward is not None:
                block.__dict__["forward"] = forward


def blocks_of(network: nn.Module) -> list[str]:
    """Paths of what one would put checkpoints around: the chains' blocks and those beside them.

    A stage's first block, which changes the shape, is in no chain, but is a block all the same.
    """
    inside = {path for chain in chains(network) for path in chain.blocks}
    inside |= {forward.path for forward in rewired_forwards(network)}
    parents = dict.fromkeys(path.rpartition(".")[0] for path in _in_order(network, inside))
    found: list[str] = []
    for parent in parents:
        module = network.get_submodule(parent)
        children = [f"{parent}.{name}" if parent else name for name, _ in module.named_children()]
        # Only lists of blocks: a network that holds blocks by name holds other things too.
        listed = isinstance(module, (nn.ModuleList, nn.Sequential))
        found += [path for path in children if listed or path in inside]
    return found


def _in_order(network: nn.Module, paths: set[str]) -> list[str]:
    return [path for path, _ in network.named_modules() if path in paths]
