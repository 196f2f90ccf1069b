"""Maps that look like measured ones and take no time: the error falls with beta, the drift has a valley."""

from __future__ import annotations

from typing import Any

from revsurgeon.errormap import ErrorMap
from revsurgeon.errormap.comparison import Comparison
from revsurgeon.errormap.grid import Axes, make_axes
from revsurgeon.errormap.growth import Growth
from revsurgeon.errormap.point import ChainErrors, Errors, Point

SEGMENTS = 12


def point(alpha: float, beta: float, arithmetics: tuple[str, ...] = ("float",)) -> Point:
    """(alpha, beta) with plausible figures."""
    drift = 0.6 * (1 - alpha) ** 0.7 + 1.2 * abs(alpha + beta - 1)
    if beta == 0.0:
        return Point(alpha, beta, drift)
    rate = 1.2 * (0.6 + alpha) / beta
    errors = {
        "float": compared(min(1.0, 1e-7 * rate ** (SEGMENTS / 2)), Growth(1e-8, max(1.0, rate), SEGMENTS)),
        "exact": compared(0.0, None),
    }
    bits = max(0, round(-1e-9 + 0.5 + 1 / beta) - 1).bit_length()
    return Point(alpha, beta, drift, {name: errors[name] for name in arithmetics}, bits, 1000 + 100 * bits)


def compared(error: float, growth: Growth | None = None) -> Errors:
    measures = Comparison(error, 1.0 - error / 2, error, error / 10, error**2)
    return Errors(measures, (ChainErrors("blocks", measures, growth),))


def configuration(axes: Axes, arithmetics: tuple[str, ...] = ("float",), **changes: Any) -> dict[str, Any]:
    return {
        "name": "synthetic",
        "weights_sha256": "0",
        "dtype": "float32",
        "chains": [{"name": "blocks", "segments": SEGMENTS, "grid_bits": 20}],
        "merge": "normalized",
        "cut": {"granularity": "segment", "include": ["**"], "exclude": []},
        "path": {"start": [0.9, 0.1], "end": [0.3, 0.7], "order": "simultaneous"},
        "inputs": [],
        "alphas": list(axes.alphas),
        "betas": list(axes.betas),
        "arithmetics": list(arithmetics),
        **changes,
    }


def error_map(
    size: int | str = 5, arithmetics: tuple[str, ...] = ("float",), axes: Axes | None = None, **changes: Any
) -> ErrorMap:
    axes = axes or make_axes(size)
    grid = {place: point(*place, arithmetics) for place in axes.points}
    return ErrorMap(configuration(axes, arithmetics, **changes), grid)
