"""How sizes of memory are written: in GiB, as GPUs are sold and limits are given."""

from __future__ import annotations


def size(number: int) -> str:
    """A number of bytes in binary units.

    >>> size(25_769_803_776), size(1_500_000), size(700)
    ('24.0 GiB', '1.4 MiB', '700 B')
    """
    value, unit = float(number), 0
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    while value >= 1023.5 and unit < len(units) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 100 else 1
    return f"{value:.{digits}f} {units[unit]}"
