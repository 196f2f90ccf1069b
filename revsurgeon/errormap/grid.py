"""Which points (alpha, beta) a map has: from what was asked for to two rising lists. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from revsurgeon.errors import UsageError
from revsurgeon.recipes import SMALLEST_BETA

DEFAULT_SIZE = 11
LARGEST = 10_000
"""Points in one map; more than any picture can show."""

_DIGITS = 10  # so that the third of eleven points is .2 and not .2000000000000018
_FORM = "Write numbers from 0 to 1 as 0.9,0.95,1 or as FROM:TO:STEP, as in 0:1:0.05"


@dataclass(frozen=True)
class Axes:
    """The coefficients of a map, each list rising and without repetition.

    Attributes:
        alphas: in [0, 1].
        betas: 0, or in [2**-16, 1].
    """

    alphas: tuple[float, ...]
    betas: tuple[float, ...]

    @property
    def points(self) -> list[tuple[float, float]]:
        """All pairs (alpha, beta), alpha by alpha."""
        return [(alpha, beta) for alpha in self.alphas for beta in self.betas]


def make_axes(
    grid: str | int | None = None,
    alphas: str | Sequence[float] | None = None,
    betas: str | Sequence[float] | None = None,
) -> Axes:
    """Read what was asked for.

    Args:
        grid: points an axis, evenly from 0 to 1: 11, "11" or "11x21" (alphas x betas). None is 11.
        alphas, betas: values in place of the grid's: numbers, or a text such as "0.9,1" or "0:1:0.05".

    Raises:
        UsageError: no points, too many, or values out of range.

    >>> make_axes("3x2").points
    [(0.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.5, 1.0), (1.0, 0.0), (1.0, 1.0)]
    >>> make_axes(betas="0.1,0.05").betas
    (0.05, 0.1)
    """
    counts = _counts(grid)
    chosen = []
    for name, count, given in zip(("alpha", "beta"), counts, (alphas, betas), strict=True):
        values = _even(count) if given is None else _values(name, given)
        if not values:
            raise UsageError(f"the map has no {name}.", hint=_FORM)
        smallest = SMALLEST_BETA if name == "beta" else 0.0
        wrong = [v for v in values if not (v == 0.0 or smallest <= v <= 1.0)]
        if wrong:
            low = "0 or from 2**-16" if name == "beta" else "from 0"
            raise UsageError(f"{name} = {wrong[0]:g} is out of range: {name} is {low} to 1.", hint=_FORM)
        chosen.append(tuple(sorted(set(values))))
    axes = Axes(*chosen)
    if len(axes.points) > LARGEST:
        raise UsageError(f"the map has {len(axes.points):,} points; at most {LARGEST:,} are measured.")
    return axes


def _counts(grid: str | int | None) -> tuple[int, int]:
    text = str(DEFAULT_SIZE if grid is None else grid).strip().lower()
    parts = text.split("x") if "x" in text else [text, text]
    if len(parts) != 2 or not all(part.isdecimal() and 1 < int(part) <= LARGEST for part in parts):
        raise UsageError(
            f"the grid {grid!r} is not a number of points.", hint="Write 11 or 11x21; at least 2 an axis."
        )
    return int(parts[0]), int(parts[1])


def _even(count: int) -> list[float]:
    return [round(i / (count - 1), _DIGITS) for i in range(count)]


def _values(name: str, given: str | Sequence[float]) -> list[float]:
    try:
        if not isinstance(given, str):
            numbers = [float(value) for value in given]
        elif ":" in given:
            low, high, step = map(float, given.split(":"))
            if not (step > 0 and (high - low) / step < LARGEST):
                raise ValueError
            numbers = [low + step * i for i in range(math.floor((high - low) / step + 1e-9) + 1)]
        else:
            numbers = [float(part) for part in given.split(",") if part.strip()]
    except (ValueError, TypeError, OverflowError):
        raise UsageError(f"{name} = {given!r} is not a list of numbers.", hint=_FORM) from None
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{name} = {given!r} is not a list of numbers.", hint=_FORM)
    return [round(number, _DIGITS) for number in numbers]
