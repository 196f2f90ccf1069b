"""Where the thresholds come from. eps is the distance from 1 to the next number of a floating type.

Bounds of the form eps / beta**n say nothing about deep chains: at beta = .1 and 24 segments they allow 1e17.
So what accumulates is never compared with a bound on its accumulation. Each single step is compared with what
one step may err by, which is a few eps at any depth and any beta; and what has accumulated at the end is
compared with what a user can live with.
"""

from __future__ import annotations

import math

import torch

from revsurgeon.rewiring.selfcheck import FLOAT_GRADIENT_LIMIT

FLOAT_LIMIT = 10 * FLOAT_GRADIENT_LIMIT
"""Relative error that float arithmetic may have accumulated in a gradient: 1e-2.

`arithmetic: auto` decides at 1e-3, on one batch in evaluation mode. Other batches, and dropout, move that
error by a factor of two or three on the networks of the tests, and what was decided must not be refused
here. The noise of a minibatch is far larger; where float reversal fails, its error is near 1.
"""


def float_gradients(dtype: torch.dtype) -> float:
    """The relative error that float arithmetic may have accumulated in a gradient of weights of this type.

    `FLOAT_LIMIT`, but no less than four eps: a stream that is off by its last bit may be rounded to the next
    number of a low precision, which is an error as large as any that such weights live with.
    """
    return max(FLOAT_LIMIT, 4 * torch.finfo(dtype).eps)


RECOVERED_LIMIT = 0.1
"""Relative error that float arithmetic may have accumulated in the input of a segment.

It is largest at the chain's start, where it reaches the gradients of one segment only, so it may be larger
than theirs. Above a tenth of its length, what a segment is differentiated at is another input.
"""

EXACT = 0.0
"""Exact arithmetic recovers every bit, so its gradients are the stored ones; the threshold is equality."""

GRID_LIMIT = 1e-4
"""Relative error by which the grid of exact arithmetic may move a stream: a tenth of auto's limit on float.

The grid that a conversion chooses (2**-29 of the largest value, or finer) stays below 1e-6.
"""


def reordered(uses: int, dtype: torch.dtype) -> float:
    """What a gradient may be off by whose terms are added in another order; 0 for two terms.

    Each of ``uses - 1`` additions rounds by half an eps, in both orders.
    """
    return (uses - 1) * torch.finfo(dtype).eps if uses > 2 else 0.0


ORDER_BAND = 0.1
"""How far the measured order of convergence for beta -> 0 may be from 1.

The output is a smooth function of beta (up to kinks of piecewise linear functions, which add terms of
second order), equal to the pretrained network's at 0. So its distance from that is ``c beta + d beta**2 +
...``, and between beta = 2**-16 and 1e-3 the slope of its logarithm differs from 1 by no more than about
1e-3 * d / c. The band allows d / c up to 100.
"""

NOTHING = 1e-10
"""A relative distance below this is nothing that can be followed to smaller beta in float64."""

REFERENCE_FACTOR = 4.0
"""How many times the error of plain stored gradients, measured against float64, reversible ones may have.

Both follow the same equations; they round in other places. Each segment has up to twice as many roundings of
a stream (adding y, scaling it, and both again on the way back), and errors of independent roundings add up in
their squares: a factor of two, and as much again because both errors are single draws.
"""

REPEAT_FACTOR = 4.0
"""How many times the difference of two stored runs a reversible run may differ, where kernels do not repeat.

Some kernels add in an order that changes from run to run (atomic additions on GPUs). The reversible run adds
its own disorder twice, once in each of its two forwards; the rest is for single draws.
"""


def rounding(*dtypes: torch.dtype) -> float:
    """What one segment may err by: four eps of the least precise type that takes part.

    The addition of the skip and that of y round once each, and so does the reference; where something follows
    the addition of the skip (a norm, an activation), it passes these errors on with a factor of about one,
    and rounds itself.
    """
    return 4 * max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)


def grid(bits: int, numel: int, norm: float) -> float:
    """What rounding to a grid of 2**-bits may move a stream by, relative to its norm; at most `GRID_LIMIT`.

    Two roundings of at most one step of the grid, over `numel` elements.
    """
    if norm == 0.0:
        return 0.0
    return min(2 * 2.0**-bits * math.sqrt(numel) / norm, GRID_LIMIT)


def step_back(dtype: torch.dtype) -> float:
    """What one step back may err by in float: two eps of the streams' type.

    y / beta undoes beta * x with two roundings of half an eps. (G + y) - G undoes the addition with two more,
    of the size of x, not of y; hence the error is told relative to both streams together.
    """
    return 2 * torch.finfo(dtype).eps


def reference(plain: float, dtype: torch.dtype) -> float:
    """What a gradient may be off float64's by.

    Args:
        plain: by how much plain stored gradients of the same precision are off.
        dtype: of the weights; its eps is the least that is allowed, for networks that happen to be exact.
    """
    return REFERENCE_FACTOR * plain + torch.finfo(dtype).eps
