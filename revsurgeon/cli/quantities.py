"""How numbers are written for people: counts, bytes, shapes, shares."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int) -> str:
    """Return a count of elements, as in 5.7 M.

    >>> count(999), count(119_730), count(5_717_416)
    ('999', '120 k', '5.7 M')
    """
    return _scaled(number, 1000, ("", " k", " M", " G", " T"))


def size(number_of_bytes: int) -> str:
    """Return a number of bytes in decimal units, as file managers and the Hub show it.

    >>> size(485_752)
    '486 kB'
    """
    return _scaled(number_of_bytes, 1000, (" B", " kB", " MB", " GB", " TB"))


def plural(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> plural(1, "chain"), plural(4, "chain")
    ('1 chain', '4 chains')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shape(sizes: Sequence[int]) -> str:
    """Return a tensor's shape.

    >>> shape((2, 197, 192))
    '2x197x192'
    """
    return "x".join(map(str, sizes)) or "scalar"


def _scaled(number: int, base: int, units: Sequence[str]) -> str:
    value, unit = float(number), 0
    while round(value, 0 if value >= 10 else 1) >= base and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    digits = 0 if unit == 0 or value >= 100 else 1
    return f"{value:.{digits}f}{units[unit]}"
