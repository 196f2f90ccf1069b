"""Search for the largest size whose peak fits into some memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_UPPER = 2**20  # steps; nobody trains at more


@dataclass(frozen=True)
class Largest:
    """What was found.

    Attributes:
        value: the largest that fits; None if not even the smallest does.
        smallest: that was tried.
        next: one step above `value`, which does not fit; None at the upper end of the search.
    """

    value: int | None
    smallest: int
    next: int | None


def find_largest(peak: Callable[[int], int], limit: int, start: int, step: int) -> Largest:
    """The largest value of ``start + k * step`` (k may be negative) with ``peak(value) <= limit``.

    Both it and the value above it are evaluated, so the answer is checked and not extrapolated. In between,
    values are guessed from a straight line through what is known, because every evaluation is a simulation.

    Args:
        peak: bytes at a value; grows with it.
        limit: bytes.
        start: a value that the network takes.
        step: between values that it takes.
    """
    smallest = start - (start - 1) // step * step
    fits: list[tuple[int, int]] = []  # (value, bytes), growing
    above: tuple[int, int] | None = None
    value, tries = start, 0
    while True:
        size = peak(value)
        if size <= limit:
            fits.append((value, size))
        else:
            above = value, size
        if above is not None and above[0] == smallest:
            return Largest(None, smallest, smallest)
        if fits and above is not None and above[0] - fits[-1][0] <= step:
            return Largest(fits[-1][0], smallest, above[0])
        if fits and fits[-1][0] >= start + _UPPER * step:
            return Largest(fits[-1][0], smallest, None)
        if above is None:
            steps = _up(fits, limit, step)
        else:
            tries += 1
            low = fits[-1] if fits else (smallest - step, 0)
            steps = _between(low, above, limit, step, halve=tries > 3 and tries % 2 == 0)
        value = (fits[-1][0] if fits else smallest - step) + steps * step


def _up(fits: list[tuple[int, int]], limit: int, step: int) -> int:
    """How many steps to go beyond what fits, while nothing is known that does not."""
    value, size = fits[-1]
    most = 16 * max(value // step, 1)  # a flat start tells nothing about what follows
    # The first one is too steep, because parameters do not grow with the size; the next is better.
    before = fits[-2] if len(fits) > 1 else (0, 0)
    slope = (size - before[1]) / (value - before[0])
    if slope == 0:
        return min(most, _UPPER)
    return min(max(int((limit - size) / slope) // step, 1), most, _UPPER)


def _between(low: tuple[int, int], above: tuple[int, int], limit: int, step: int, *, halve: bool) -> int:
    """How many steps to go up from `low`, to a value below `above`.

    By the straight line between them, rounded down to what should still fit, or one beyond where that is
    known already. Where that has not been enough, by halves: a line is slow on a curve.
    """
    steps = (above[0] - low[0]) // step
    share = 0.5 if halve else (limit - low[1]) / (above[1] - low[1])
    return min(max(int(share * steps), 1), steps - 1)
