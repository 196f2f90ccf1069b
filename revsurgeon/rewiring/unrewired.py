"""The plain network inside a rewired one, and the segments that its blocks have been cut into."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.record import SegmentCall
from revsurgeon.rewiring.block import RewiredForward


@contextlib.contextmanager
def unrewired(model: nn.Module) -> Iterator[nn.Module]:
    """Take the chains off inside this context: the same modules and weights, with their own forwards."""
    kept = rewired_forwards(model)
    with replaced_forwards({f: f.replaced for f in kept}):
        yield model


@contextlib.contextmanager
def replaced_forwards(forwards: dict[RewiredForward, Any]) -> Iterator[None]:
    """Put other forwards on rewired blocks inside this context; None is the class's own."""
    for rewired, forward in forwards.items():
        rewired.block.__dict__.pop("forward", None)
        if forward is not None:
            rewired.block.__dict__["forward"] = forward
    try:
        yield
    finally:
        for rewired in forwards:
            rewired.block.__dict__["forward"] = rewired


def rewired_forwards(model: nn.Module) -> list[RewiredForward]:
    """The forwards of all rewired blocks, each once."""
    found = (module.__dict__.get("forward") for module in model.modules())
    return [forward for forward in found if isinstance(forward, RewiredForward)]


def segment_parameters(model: nn.Module, chain: Chain) -> dict[str, list[str]]:
    """Names of the parameters that each segment of a chain reads, by the segment's name, in order.

    Segments are known once the network has run.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    by_path = {f.path: f for f in rewired_forwards(model) if f.chain is chain}
    found: dict[str, list[str]] = {}
    for path in chain.blocks:
        forward = by_path[path]
        for plan in forward._plans.values():
            for segment in plan.segments:
                used = segment.parameters(forward.block)
                found.setdefault(segment.name, [names[id(p)] for p in used if id(p) in names])
    return found


def calls_of(
    forward: RewiredForward, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[SegmentCall], Any]:
    """The segments that a call of a block consists of, and what makes its output of the last x.

    Returns:
        The segments, and a function from x and the segments' side outputs to the block's output.
    """
    from torch.utils import _pytree as pytree

    x = stream_of(forward, args, kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    plan = forward._plan(args, kwargs, leaves, spec, x)

    def finish(result: Any, sides: Sequence[Any] = ()) -> Any:
        if plan.finish is None:
            return result
        return plan.finish(forward.block, result, 0.0, *(leaves[i] for i in plan.finish_extras), *sides)

    return [segment.bind(forward.block, leaves) for segment in plan.segments], finish


def stream_of(forward: RewiredForward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument of a block's call that is the stream."""
    return args[forward._position] if len(args) > forward._position else kwargs[forward.stream]
