"""How fast the error of float reversal grows from segment to segment, and where anchors would stop it.

Going backwards, each segment hands its error, larger by some factor, to the one before it. So the gradient
of a block that lies d segments from the chain's end errs by about ``first * rate**d``. Both numbers are
read off one backward pass, from the errors of the chain's blocks one by one. Streams that are stored every k
segments (anchors) begin the growth anew; the errors of the N / k stretches between them add up.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

FINE = 1e-3
"""A relative error of the gradient up to this is as good as none: `arithmetic: auto` has the same limit."""

GARBAGE = 1e-1
"""From here on the gradient points elsewhere."""


@dataclass(frozen=True)
class Growth:
    """``error(d) = first * rate**d`` at d segments from the end of a chain of so many segments."""

    first: float
    rate: float
    segments: int

    def stretch(self, limit: float = FINE) -> int:
        """The most segments between two anchors that keep the whole chain's error below `limit`.

        Returns:
            From 1 to the chain's length; 0 if not even an anchor at every segment would do.
        """
        for k in range(self.segments, 0, -1):
            # In logarithms, because rate**k may overflow.
            error = math.log(self.segments / k) + math.log(self.first) + k * math.log(self.rate)
            if error <= math.log(limit):
                return k
        return 0


def fit_growth(
    distances: Sequence[float], errors: Sequence[float], segments: int, *, rounding: float, beta: float
) -> Growth:
    """Fit the growth to the errors of a chain's blocks.

    Args:
        distances: of the blocks from the chain's end, in segments.
        errors: the relative error of each block's gradient.
        segments: the chain's length.
        rounding: of one operation on the streams.
        beta: each inverse step divides by it, so no error grows by more than 1 / beta for long.

    Returns:
        The least-squares line through the logarithms of those errors that are not yet garbage. Where fewer
        than two are left, the worst case: the rounding of one operation, growing by 1 / beta.
    """
    usable = [(d, math.log(e)) for d, e in zip(distances, errors, strict=True) if 0.0 < e < GARBAGE]
    if len({d for d, _ in usable}) < 2:
        return Growth(rounding, 1.0 / beta, segments)
    mean_d = sum(d for d, _ in usable) / len(usable)
    mean_e = sum(e for _, e in usable) / len(usable)
    spread = sum((d - mean_d) ** 2 for d, _ in usable)
    slope = max(0.0, sum((d - mean_d) * (e - mean_e) for d, e in usable) / spread)
    first = max(mean_e - slope * mean_d, math.log(sys.float_info.min))
    return Growth(math.exp(first), math.exp(slope), segments)
