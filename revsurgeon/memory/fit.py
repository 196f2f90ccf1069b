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
    fits: tuple[int, int] | None = None  # (value, bytes)
    above: tuple[int, int] | None = None
    value = start
    while True:
        size = peak(value)
        if size <= limit:
            fits = value, size
        else:
            above = value, size
        if above is not None and above[0] == smallest:
            return Largest(None, smallest, smallest)
        if fits is not None and above is not None and above[0] - fits[0] <= step:
            return Largest(fits[0], smallest, above[0])
        if fits is not None and fits[0] >= start + _UPPER * step:
            return Largest(fits[0], smallest, None)
        value = _guess(fits, above, limit, smallest, step)


def _guess(
    fits: tuple[int, int] | None, above: tuple[int, int] | None, limit: int, smallest: int, step: int
) -> int:
    """The next value to try, strictly between what fits and what does not."""
    if above is None:
        assert fits is not None
        # Proportional: too far, because parameters do not grow; so the line is good from here on.
        wanted = max(fits[0] * limit // max(fits[1], 1), fits[0] + step)
        return smallest + min((wanted - smallest) // step + 1, _UPPER * 2) * step
    low = fits or (smallest - step, 0)
    if fits is None:
        return (
            smallest if above[0] - smallest <= step else smallest + (above[0] - smallest) // (4 * step) * step
        )
    share = (limit - low[1]) / (above[1] - low[1])
    steps = (above[0] - low[0]) // step
    at = min(max(round(share * steps - 0.5), 1), steps - 1)
    if at < steps - 1 and share * steps - at > 0.9:
        at += 1
    return low[0] + at * step
