"""Numbers of a few characters, for cells of a map."""

from __future__ import annotations


def short_number(value: float) -> str:
    """A number in at most five characters, to one digit or two.

    >>> [short_number(v) for v in (0.0, 3e-7, 0.0123, 0.0633, 0.54, 1.64, 31.2, 1e30)]
    ['0', '3e-7', '.012', '.063', '.54', '1.6', '31', '>999']
    """
    if value < 0:
        return f"-{short_number(-value)}"
    if value == 0:
        return "0"
    if value >= 999:
        return ">999"
    if value >= 9.95:
        return f"{value:.0f}"
    if value >= 0.995:
        return f"{value:.1f}"
    if value >= 0.0995:
        return f"{value:.2f}".lstrip("0")
    if value >= 0.00995:
        return f"{value:.3f}".lstrip("0")
    return f"{value:.0e}".replace("e-0", "e-")
