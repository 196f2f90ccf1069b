"""How far a program's outputs are from the network's, and how far they may be."""

from __future__ import annotations

import math

import torch
from torch import nn

from revsurgeon.rewiring.measure import distance, same_bits

LARGEST = 0.05
"""No difference above this is ever taken for rounding."""


def tolerance(model: nn.Module, operations: int) -> float:
    """What a difference may be that comes from rounding alone, relative to an output's norm.

    A runtime may choose another kernel for every operation, whose result then differs by one rounding of the
    coarsest dtype that takes part: to first order, no more than that many roundings.
    """
    floats = {p.dtype for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()}
    coarsest = max((torch.finfo(dtype).eps for dtype in floats), default=torch.finfo(torch.float32).eps)
    return min(coarsest * operations, LARGEST)


def difference(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative distance of two tensors: 0 if all bits are equal, infinite for other shapes."""
    if len(actual) != len(expected):
        return math.inf
    return max((_apart(a, e.to(a.device)) for a, e in zip(actual, expected, strict=True)), default=0.0)


def _apart(actual: torch.Tensor, expected: torch.Tensor) -> float:
    if same_bits(actual, expected):
        return 0.0
    alike = actual.dtype == expected.dtype and actual.shape == expected.shape
    return distance([actual], [expected]) if alike and actual.is_floating_point() else math.inf
