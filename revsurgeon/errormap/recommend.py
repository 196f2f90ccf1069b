"""The recommendation: the start, end point, path and arithmetic that cost least, a shortest path over a map.

A path begins where the surgery leaves the network, moves over neighbouring points of the map, and ends where
the rest of the training stays. All costs are relative errors, so that they can be added:

    start    drift(p)              what the first forward is away from the pretrained network
    move     |q - p| * mean of cost at p and q, with cost = drift + precision + memory
    end      precision(p) + memory(p)    what stays; the drift is by then what the network was trained at

    precision    float: gradient error / .1, so that garbage costs as much as an output that is all wrong, and
                 what is fine (1e-3) a hundredth of that. exact: 0
    memory       exact: b / 256 for b bits an element and segment; about 256 bits (8 numbers) is what a
                 transformer's residual module stores conventionally. float: 0

In float no point is entered whose gradients are garbage (an error of .1 or more). Only such paths count as a
recipe's schedule can follow: along a straight line ("simultaneous"), or along one axis and then the other
("alpha-first", "beta-first"). The search is Dijkstra's over pairs of a point and a form of path.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from revsurgeon.errormap.growth import GARBAGE
from revsurgeon.errormap.point import Point

STORED_BITS = 256
"""Bits an element that a transformer's residual module stores for a conventional backward pass."""

Where = tuple[int, int]
Form = tuple[str, int, int, float]  # order, steps along the two axes, slope of a straight line


@dataclass(frozen=True)
class Route:
    """One way through the coefficients, in one arithmetic.

    Attributes:
        arithmetic: "float" or "exact".
        points: of the map, from the start to the end; a single one stays where it starts.
        order: of a recipe's schedule: "simultaneous", "alpha-first" or "beta-first".
        start_cost, move_cost, end_cost: see this file's first lines.
    """

    arithmetic: str
    points: tuple[Point, ...]
    order: str
    start_cost: float
    move_cost: float
    end_cost: float

    @property
    def start(self) -> tuple[float, float]:
        """(alpha, beta) to begin with."""
        return self.points[0].alpha, self.points[0].beta

    @property
    def end(self) -> tuple[float, float]:
        """(alpha, beta) to end with."""
        return self.points[-1].alpha, self.points[-1].beta

    @property
    def cost(self) -> float:
        """What was made as small as possible."""
        return self.start_cost + self.move_cost + self.end_cost

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "arithmetic": self.arithmetic,
            "start": list(self.start),
            "end": list(self.end),
            "order": self.order,
            "path": [[p.alpha, p.beta] for p in self.points],
            "drift": self.points[0].drift,
            "cost": {
                "start": self.start_cost,
                "move": self.move_cost,
                "end": self.end_cost,
                "total": self.cost,
            },
        }


@dataclass(frozen=True)
class Recommendation:
    """The best route, and the best one in the other arithmetic for comparison.

    Attributes:
        route: to take.
        other: in the other arithmetic; None where there is none: float gradients are garbage everywhere, or
            were not measured.
        anchors: where float reversal on the way needs anchors to be fine: (alpha, beta, segments between
            two). 0 segments means that no number of anchors would do.
    """

    route: Route
    other: Route | None
    anchors: tuple[tuple[float, float, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        anchors = [{"alpha": a, "beta": b, "every": k} for a, b, k in self.anchors]
        other = None if self.other is None else self.other.to_dict()
        return {**self.route.to_dict(), "float_anchors": anchors, "other": other}


def recommend(points: Mapping[tuple[float, float], Point], *, exact: bool = True) -> Recommendation | None:
    """Choose by the rule above; None if there is no point to be at.

    Exact routes need only the drift: their gradients are exact wherever they lead.

    Args:
        points: by (alpha, beta).
        exact: whether the network can be reversed exactly.
    """
    names = ("exact", "float") if exact else ("float",)
    found = [route for name in names if (route := shortest_route(points, name)) is not None]
    if not found:
        return None
    best, *others = sorted(found, key=lambda route: route.cost)
    anchors = []
    for point in best.points:
        errors = point.errors.get("float")
        if errors is not None and errors.anchors_every is not None:
            anchors.append((point.alpha, point.beta, errors.anchors_every))
    return Recommendation(best, others[0] if others else None, tuple(anchors))


def shortest_route(points: Mapping[tuple[float, float], Point], arithmetic: str) -> Route | None:
    """The cheapest route in one arithmetic, or None if there is no point to be at."""
    alphas = sorted({alpha for alpha, _ in points})
    betas = sorted({beta for _, beta in points})
    open_points: dict[Where, Point] = {}
    for place, point in points.items():
        if point.beta > 0.0 and precision(point, arithmetic) < 1.0:
            open_points[alphas.index(place[0]), betas.index(place[1])] = point
    if not open_points:
        return None

    costs: dict[tuple[Where, Form], float] = {}
    before: dict[tuple[Where, Form], tuple[Where, Form] | None] = {}
    queue: list[tuple[float, Where, Form]] = []

    def offer(cost: float, where: Where, form: Form, came_from: tuple[Where, Form] | None) -> None:
        if cost < costs.get((where, form), math.inf):
            costs[where, form] = cost
            before[where, form] = came_from
            heapq.heappush(queue, (cost, where, form))

    for where, point in open_points.items():
        offer(point.drift, where, _STANDING, None)
    while queue:
        cost, where, form = heapq.heappop(queue)
        if cost > costs[where, form]:
            continue  # a cheaper way was found since
        here = open_points[where]
        for there, following in _moves(where, form, alphas, betas):
            if there in open_points:
                move = _move_cost(here, open_points[there], arithmetic)
                offer(cost + move, there, following, (where, form))

    last: tuple[Where, Form] | None = min(
        costs, key=lambda state: costs[state] + _end_cost(open_points[state[0]], arithmetic)
    )
    assert last is not None
    order = last[1][0] or "simultaneous"
    way: list[Point] = []
    while last is not None:
        way.insert(0, open_points[last[0]])
        last = before[last]
    moves = sum(_move_cost(p, q, arithmetic) for p, q in itertools.pairwise(way))
    return Route(arithmetic, tuple(way), order, way[0].drift, moves, _end_cost(way[-1], arithmetic))


def precision(point: Point, arithmetic: str) -> float:
    """What imprecise gradients cost; infinite where they were not measured."""
    if arithmetic == "exact":
        return 0.0
    errors = point.errors.get("float")
    return math.inf if errors is None else errors.whole.relative / GARBAGE


def _memory(point: Point, arithmetic: str) -> float:
    return (point.bits or 0) / STORED_BITS if arithmetic == "exact" else 0.0


def _end_cost(point: Point, arithmetic: str) -> float:
    return precision(point, arithmetic) + _memory(point, arithmetic)


def _move_cost(p: Point, q: Point, arithmetic: str) -> float:
    length = math.hypot(q.alpha - p.alpha, q.beta - p.beta)
    return length * sum(point.drift + _end_cost(point, arithmetic) for point in (p, q)) / 2


_STANDING: Form = ("", 0, 0, 0.0)


def _moves(
    where: Where, form: Form, alphas: Sequence[float], betas: Sequence[float]
) -> Iterator[tuple[Where, Form]]:
    """The neighbours to go on to, and the form that the path then has."""
    order, di, dj, slope = form
    if order == "":
        steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    elif order == "simultaneous" and 0 in (di, dj):  # it may turn, once
        steps = [(di, dj), *((turn * dj, turn * di) for turn in (-1, 1))]
    else:
        steps = [(di, dj)]
    for a, b in steps:
        i, j = where[0] + a, where[1] + b
        if not (0 <= i < len(alphas) and 0 <= j < len(betas)):
            continue
        if order == "" or (order == "simultaneous" and (a, b) == (di, dj)):
            rise = _slope(alphas[i] - alphas[where[0]], betas[j] - betas[where[1]])
            if order == "" or math.isclose(rise, slope, rel_tol=1e-6):
                yield (i, j), ("simultaneous", a, b, rise)
        elif order == "simultaneous":
            yield (i, j), ("alpha-first" if dj == 0 else "beta-first", a, b, 0.0)
        else:
            yield (i, j), form


def _slope(along: float, up: float) -> float:
    """Of a straight line; one number for every vertical one."""
    return up / along if along else math.inf
