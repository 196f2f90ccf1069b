"""Along which dimension a segment may be run piece by piece, found by trying.

Nothing is concluded from names. A dimension is taken if no output at one place depends on the input at
another, if every random number that the segment draws belongs to one place, and if the pieces give what the
whole gives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from revsurgeon.anatomy.probe import untouched
from revsurgeon.reversible.chunks import Chunks
from revsurgeon.reversible.record import SegmentCall


def independent_dimension(call: SegmentCall, x: torch.Tensor, alpha: float) -> int | None:
    """The first dimension of the stream, the batch being the last resort, whose places are independent.

    Args:
        call: a segment that reads and gives out nothing beside the stream.
        x: what it is called with, of the stream's shape.
        alpha: coefficient of the original skip.

    Returns:
        The dimension, or None if the segment has to be run whole.
    """
    devices = [x.device.index or 0] if x.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), untouched(call.block):
        for dimension in (*range(1, x.ndim), 0):
            if x.shape[dimension] > 1 and _is_independent(call, x.detach(), alpha, dimension):
                return dimension
    return None


def _is_independent(call: SegmentCall, x: torch.Tensor, alpha: float, dimension: int) -> bool:
    draws = _Draws()
    with draws:
        expected = _run(call, x, alpha)
    size = x.shape[dimension]
    if expected is None or expected.shape != x.shape:
        return False
    if any(len(shape) <= dimension or shape[dimension] != size for shape in draws.shapes):
        return False  # one number for all places: stochastic depth along the tokens
    for place in (0, size // 2):
        outside = torch.arange(size, device=x.device) != place
        kept = expected.index_select(dimension, outside.nonzero().flatten())
        for value in (float("nan"), 1e3):
            changed = x.clone()
            changed.select(dimension, place).fill_(value)
            found = _run(call, changed, alpha)
            if found is None or not torch.equal(
                found.index_select(dimension, outside.nonzero().flatten()), kept
            ):
                return False
    return _pieces_give_the_whole(call, x, alpha, dimension)


def _pieces_give_the_whole(call: SegmentCall, x: torch.Tensor, alpha: float, dimension: int) -> bool:
    """Without dropout, which draws other numbers for pieces. A bias for each place would not pass."""
    call.block.eval()
    whole = _run(call, x, alpha)
    chunks = Chunks(dimension, 2)
    pieces = [_run(call, chunks.piece(piece), alpha) for piece in chunks.split(x)]
    if whole is None or any(piece is None for piece in pieces):
        return False
    joined = torch.cat([piece for piece in pieces if piece is not None], dim=dimension)
    if joined.shape != whole.shape:
        return False
    kind = x.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    # Sums of n products in another order differ by less than n * eps.
    places = x.shape[dimension] * (x.shape[0] if dimension else 1)
    limit = min(x.numel() // places * torch.finfo(low).eps, 0.05)
    difference = (joined.double() - whole.double()).norm()
    return bool(difference <= limit * whole.double().norm())


def _run(call: SegmentCall, x: torch.Tensor, alpha: float) -> torch.Tensor | None:
    torch.manual_seed(0)
    try:
        return call.function(call.block, x, alpha, *call.extras)
    except (RuntimeError, ValueError, IndexError):
        return None  # it needs its input's whole shape


class _Draws(TorchDispatchMode):
    """Notes the shapes of all random tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            first = result[0] if isinstance(result, tuple) else result
            self.shapes.append(first.shape)
        return result
