"""How far gradients are from other gradients: five measures of one comparison, summed up tensor by tensor."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

METRICS = ("relative", "cosine", "max_abs", "mean_abs", "mse")


@dataclass(frozen=True)
class Comparison:
    """Gradients g against a reference r, over some parameters together.

    What overflowed is as far away as a float can say, because JSON has no infinity.

    Attributes:
        relative: ``||g - r|| / ||r||``; exactly 0 only when every element is equal.
        cosine: of the angle between g and r; None where one of them is zero or no number.
        max_abs: the largest ``|g - r|`` of an element.
        mean_abs: the mean ``|g - r|`` of the elements.
        mse: the mean ``(g - r)**2``.
    """

    relative: float
    cosine: float | None
    max_abs: float
    mean_abs: float
    mse: float


@dataclass
class Sums:
    """What `Comparison` is computed from; sums of two sets of parameters add up."""

    count: int = 0
    squares: float = 0.0  # of the difference
    absolutes: float = 0.0
    largest: float = 0.0
    own: float = 0.0  # squares of g
    reference: float = 0.0  # squares of r
    product: float = 0.0

    def __iadd__(self, other: Sums) -> Sums:
        self.count += other.count
        self.squares += other.squares
        self.absolutes += other.absolutes
        # The plain maximum of a NaN and a number may be either.
        self.largest = other.largest if math.isnan(other.largest) else max(self.largest, other.largest)
        self.own += other.own
        self.reference += other.reference
        self.product += other.product
        return self

    @classmethod
    def of(cls, gradient: torch.Tensor, reference: torch.Tensor) -> Sums:
        """The sums of one tensor, in float64."""
        g, r = gradient.double(), reference.double()
        difference = g - r
        if not difference.numel():
            return cls()
        absolute = difference.abs()
        return cls(
            difference.numel(),
            float(difference.square().sum()),
            float(absolute.sum()),
            float(absolute.max()),
            float(g.square().sum()),
            float(r.square().sum()),
            float((g * r).sum()),
        )

    def comparison(self) -> Comparison:
        """The measures of everything that was added up."""
        relative = self.squares**0.5 / self.reference**0.5 if self.reference else self.squares**0.5
        count = max(1, self.count)
        return Comparison(
            _finite(relative),
            self._cosine(),
            _finite(self.largest),
            _finite(self.absolutes / count),
            _finite(self.squares / count),
        )

    def _cosine(self) -> float | None:
        if self.squares == 0.0 and self.reference:
            return 1.0
        lengths = self.own**0.5 * self.reference**0.5
        if not lengths or not math.isfinite(lengths) or not math.isfinite(self.product):
            return None
        return max(-1.0, min(1.0, self.product / lengths))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else sys.float_info.max
