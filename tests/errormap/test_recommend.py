"""The recommendation is the cheapest route that a recipe can follow: compared with all of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest

from revsurgeon.errormap.grid import make_axes
from revsurgeon.errormap.growth import GARBAGE
from revsurgeon.errormap.point import Point
from revsurgeon.errormap.recommend import STORED_BITS, recommend, shortest_route
from revsurgeon.reversible.schedule import ORDERS, CoefficientSchedule
from tests.errormap.synthetic import compared, error_map

Place = tuple[float, float]
Grid = dict[Place, Point]


def cost(way: list[Point], arithmetic: str) -> float:
    """As the first lines of recommend.py say it."""

    def stay(p: Point) -> float:
        if arithmetic == "exact":
            assert p.bits is not None
            return p.bits / STORED_BITS
        return p.errors["float"].whole.relative / GARBAGE

    total = way[0].drift + stay(way[-1])
    for p, q in itertools.pairwise(way):
        length = math.dist((p.alpha, p.beta), (q.alpha, q.beta))
        total += length * (p.drift + stay(p) + q.drift + stay(q)) / 2
    return total


def straight(grid: Grid, start: Place, end: Place) -> list[Point] | None:
    """The points from start to end, if they lie on a straight line of neighbours."""
    alphas, betas = (sorted({place[axis] for place in grid}) for axis in (0, 1))
    i, j = alphas.index(start[0]), betas.index(start[1])
    di, dj = alphas.index(end[0]) - i, betas.index(end[1]) - j
    steps = max(abs(di), abs(dj))
    if steps and (abs(di) not in (0, steps) or abs(dj) not in (0, steps)):
        return None
    at = [(i + di * s // max(1, steps), j + dj * s // max(1, steps)) for s in range(steps + 1)]
    way = [(alphas[across], betas[up]) for across, up in at]
    for a, b in way:  # on grids whose steps differ a diagonal may bend
        area = (end[0] - start[0]) * (b - start[1]) - (end[1] - start[1]) * (a - start[0])
        if abs(area) > 1e-9:
            return None
    return [grid[place] for place in way]


def routes(grid: Grid) -> Iterator[tuple[str, list[Point]]]:
    """Every route that a schedule can follow."""
    places = [place for place in grid if place[1] > 0]
    for start, end in itertools.product(places, places):
        if way := straight(grid, start, end):
            yield "simultaneous", way
        for order, turn in (("alpha-first", (end[0], start[1])), ("beta-first", (start[0], end[1]))):
            if turn not in (start, end):
                first, second = straight(grid, start, turn), straight(grid, turn, end)
                assert first is not None
                assert second is not None
                yield order, first + second[1:]


def random_grid(seed: int) -> Grid:
    """Random costs; in most grids a place to start, one to end, and a bent corridor between high walls."""
    chance = random.Random(seed)
    values = (0.0, 0.1, 0.2, 0.3, 0.5) if seed % 2 else (0.0, 0.1, 0.2, 0.3, 0.4)
    start, end = (chance.choice(values[:4]), 0.1), (chance.choice(values[:4]), 0.3)
    corner = chance.choice([(start[0], end[1]), (end[0], start[1])])

    def between(place: Place, a: Place, b: Place) -> bool:
        return all(min(a[axis], b[axis]) <= place[axis] <= max(a[axis], b[axis]) for axis in (0, 1))

    grid = {}
    for place in itertools.product(values, values[:4]):
        if seed % 3:
            inside = between(place, start, corner) or between(place, corner, end)
            error = 1e-7 if place == end else 0.09
            drift = 0.001 if place == start else 0.5 if inside else 9.0
            bits = 0 if place == end else 230
        else:
            error, drift = 10 ** chance.uniform(-7, 0), chance.choice([0.01, 0.1, 5.0])
            bits = chance.choice([0, 64, 256])
        grid[place] = Point(*place, drift, {"float": compared(error)} if place[1] else {}, bits)
    return grid


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
@pytest.mark.parametrize("seed", range(40))
def test_no_route_that_a_recipe_can_follow_is_cheaper(seed: int, arithmetic: str) -> None:
    grid = random_grid(seed)
    possible = [
        (order, way)
        for order, way in routes(grid)
        if arithmetic == "exact" or all(p.errors["float"].whole.relative < GARBAGE for p in way)
    ]
    found = shortest_route(grid, arithmetic)
    if not possible:
        assert found is None
        return
    assert found is not None
    cheapest = min(cost(way, arithmetic) for _, way in possible)
    assert found.cost == pytest.approx(cheapest, rel=1e-9)
    assert cost(list(found.points), arithmetic) == pytest.approx(cheapest, rel=1e-9)
    assert (found.order, list(found.points)) in possible


def test_the_routes_above_are_of_every_kind() -> None:
    found = [shortest_route(random_grid(seed), name) for seed in range(40) for name in ("float", "exact")]
    orders = {route.order for route in found if route is not None and len(route.points) > 1}
    assert orders == set(ORDERS)
    assert any(route is not None and len(route.points) == 1 for route in found)


@pytest.mark.parametrize("seed", range(40))
def test_a_schedule_with_its_start_end_and_order_goes_through_its_points(seed: int) -> None:
    route = shortest_route(random_grid(seed), "exact")
    assert route is not None
    schedule = CoefficientSchedule.__new__(CoefficientSchedule)  # its path needs no network
    schedule.start, schedule.end, schedule.order = route.start, route.end, route.order
    schedule.policy, schedule.update_every, schedule.end_step = "linear", 1, 1200
    visited = [schedule.coefficients_at(step) for step in range(1201)]
    for p in route.points:
        assert min(math.dist((p.alpha, p.beta), at) for at in visited) < 2e-3


def test_exact_gradients_need_not_move_to_be_right() -> None:
    found = recommend(error_map(11).grid)
    assert found is not None
    assert found.route.arithmetic == "exact"
    assert found.route.start == found.route.end == (0.9, 0.1)
    assert found.other is not None
    assert found.other.arithmetic == "float"
    assert all(p.errors["float"].whole.relative < GARBAGE for p in found.other.points)


def test_float_is_taken_where_its_gradients_are_as_good_and_cost_no_bits() -> None:
    grid = {
        (0.9, 0.1): Point(0.9, 0.1, 0.05, {"float": compared(1e-6)}, 4),
        (0.9, 1.0): Point(0.9, 1.0, 1.0, {"float": compared(1e-7)}, 0),
    }
    found = recommend(grid)
    assert found is not None
    assert (found.route.arithmetic, found.route.start) == ("float", (0.9, 0.1))
    assert found.anchors == ()


def test_a_network_that_does_not_repeat_is_recommended_float_alone() -> None:
    found = recommend(error_map(11).grid, exact=False)
    assert found is not None
    assert found.route.arithmetic == "float"
    assert found.other is None


def test_garbage_everywhere_leaves_nothing_to_recommend_in_float() -> None:
    grid = {(1.0, 0.1): Point(1.0, 0.1, 0.3, {"float": compared(0.9)}, 4)}
    assert recommend(grid, exact=False) is None
    found = recommend(grid)
    assert found is not None
    assert (found.route.arithmetic, found.other) == ("exact", None)


def test_beta_0_is_no_place_to_be() -> None:
    assert recommend({(1.0, 0.0): Point(1.0, 0.0, 0.0)}) is None
    assert recommend({}) is None


def test_anchors_are_told_for_the_places_of_the_way() -> None:
    found = recommend(error_map(11).grid)
    assert found is not None
    ((alpha, beta, every),) = found.anchors
    point = found.route.points[0]
    assert (alpha, beta) == (point.alpha, point.beta)
    assert every == point.errors["float"].anchors_every


def test_a_map_of_any_size_is_answered_in_no_time() -> None:
    axes = make_axes(60)
    found = recommend(error_map(axes=axes).grid)
    assert found is not None
