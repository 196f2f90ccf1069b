"""What a picture of a map draws over its cells: valley, recipe's path, recommended path; and the legend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from revsurgeon.errormap.error_map import ErrorMap
from revsurgeon.errormap.growth import FINE, GARBAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure

DASHES: dict[float, Any] = {GARBAGE: "-", FINE: (0, (4, 2))}
"""How the contours of these errors are drawn."""

_HATCH: dict[str, Any] = {"facecolor": "white", "edgecolor": "#777777", "linewidth": 0}


@dataclass(frozen=True)
class Scale:
    """Where numbers lie among equally wide cells: 0 is the middle of the first, 1 that of the second."""

    values: Sequence[float]

    def __call__(self, value: float) -> float:
        """The place of a number, NaN where it is outside of all cells."""
        values = self.values
        if len(values) == 1:
            return 0.0 if math.isclose(value, values[0]) else math.nan
        for i, (low, high) in enumerate(itertools.pairwise(values)):
            if value <= high or i == len(values) - 2:
                place = i + (value - low) / (high - low)
                return place if -0.5 <= place <= len(values) - 0.5 else math.nan
        raise AssertionError("a list of two numbers has a pair")


@dataclass(frozen=True)
class Way:
    """A path through the coefficients: straight between its corners."""

    corners: Sequence[tuple[float, float]]
    name: str
    how: str
    colour: str
    marks: tuple[str, str]
    size: float  # of the marks; the larger ones show behind the smaller

    @property
    def moves(self) -> bool:
        """Whether it ends elsewhere than it starts."""
        return self.corners[0] != self.corners[-1]

    def points(self) -> list[tuple[float, float]]:
        """Points along it, close enough that it bends where the grid's steps change."""
        along = [i / 60 for i in range(60)]
        found = [
            (a + (c - a) * t, b + (d - b) * t)
            for (a, b), (c, d) in itertools.pairwise(self.corners)
            for t in along
        ]
        return [*found, self.corners[-1]]


def ways_of(found: ErrorMap) -> list[Way]:
    """The recipe's path and the recommended one."""
    ways = []
    if found.path is not None:
        turns = corners(found.path["start"], found.path["end"], found.path["order"])
        ways.append(Way(turns, "recipe", "", "#d55e00", ("o", "s"), 9.0))
    if found.recommended is not None:
        route = found.recommended.route
        places = [(p.alpha, p.beta) for p in route.points]
        ways.append(Way(places, "recommended", f", {route.arithmetic}", "#56b4e9", ("^", "D"), 6.0))
    return ways


def corners(start: Sequence[float], end: Sequence[float] | None, order: str) -> list[tuple[float, float]]:
    """The points at which a schedule turns, from its start to its end."""
    first = (start[0], start[1])
    if end is None:
        return [first]
    last = (end[0], end[1])
    turn = {"alpha-first": (last[0], first[1]), "beta-first": (first[0], last[1])}
    return [first, turn[order], last] if order in turn else [first, last]


def draw_ways(panel: Panel, found: ErrorMap) -> None:
    """Draw the valley and the paths, as far as they lie inside the map."""
    x, y = Scale(found.axes.alphas), Scale(found.axes.betas)
    valley = Way([(1.0, 0.0), (0.0, 1.0)], "", "", "black", ("", ""), 0.0)
    for way in [valley, *ways_of(found)]:
        places = [(x(alpha), y(beta)) for alpha, beta in way.points()]
        across, up = zip(*places, strict=True)
        thin = way is valley
        panel.plot(across, up, color="white", linewidth=1.8 if thin else 3.4, solid_capstyle="round")
        style: dict[str, Any] = {"linewidth": 0.8, "linestyle": ":"} if thin else {"linewidth": 1.8}
        panel.plot(across, up, color=way.colour, **style)
        if thin:
            continue
        for mark, place in ((way.marks[1], places[-1]), (way.marks[0], places[0]))[not way.moves :]:
            panel.plot(*place, mark, color=way.colour, markeredgecolor="black", markersize=way.size, zorder=5)


def draw_legend(figure: Figure, found: ErrorMap) -> None:
    """Below the panels: what lines, marks and hatching mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    contours = ((GARBAGE, "error 1e-1: garbage above"), (FINE, "error 1e-3: fine below"))
    entries: list[Any] = [
        Line2D([], [], color="black", linewidth=1.1, linestyle=DASHES[limit], label=label)
        for limit, label in contours
    ]
    entries.append(Line2D([], [], color="black", linewidth=0.8, linestyle=":", label="alpha + beta = 1"))
    x, y = Scale(found.axes.alphas), Scale(found.axes.betas)
    for way in ways_of(found):
        ends = (("start", way.corners[0]), ("end", way.corners[-1]))[: 2 if way.moves else 1]
        for mark, (which, at) in zip(way.marks, ends, strict=False):
            outside = " (outside)" if math.isnan(x(at[0]) + y(at[1])) else ""
            label = f"{way.name}: {which if way.moves else 'stay'}{way.how}{outside}"
            style: dict[str, Any] = {"marker": mark, "markeredgecolor": "black", "markersize": way.size - 1}
            entries.append(Line2D([], [], color=way.colour, label=label, **style))
    if 0.0 in found.axes.betas:
        entries.append(Patch(**_HATCH, hatch="////", label="beta = 0: not reversible"))
    if found.missing:
        entries.append(Patch(**{**_HATCH, "linewidth": 0.8}, label="not measured"))
    figure.legend(handles=entries, loc="outside lower center", ncols=4, frameon=False, handlelength=2.2)
