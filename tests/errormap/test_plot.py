"""The picture of a map: of every size and kind, with no text over another."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from revsurgeon.errormap import ErrorMap
from revsurgeon.errormap.grid import make_axes
from revsurgeon.errormap.plot import figure_of, settings
from revsurgeon.errormap.short import short_number
from revsurgeon.errormap.ways import Scale, corners
from revsurgeon.errors import UsageError
from revsurgeon.reversible.schedule import ORDERS, CoefficientSchedule
from tests.errormap.synthetic import error_map

MAPS = {
    **{f"{size}x{size}": lambda size=size: error_map(size) for size in (3, 11, 21)},
    "21x3": lambda: error_map("21x3"),
    "both": lambda: error_map(4, ("float", "exact")),
    "one": lambda: error_map(axes=make_axes(alphas=[0.9], betas=[0.1])),
    "near": lambda: error_map(axes=make_axes(alphas="0.95,0.98,0.99,1", betas="0.005,0.01,0.02")),
    "beta 0 only": lambda: error_map(axes=make_axes(3, betas=[0.0])),
    "no path, long labels": lambda: error_map("13x3", path=None),
    "staying": lambda: error_map(3, path={"start": [0.5, 0.5], "end": None, "order": "simultaneous"}),
    "alpha first": lambda: error_map(3, path={"start": [1, 0.1], "end": [0, 1], "order": "alpha-first"}),
    "incomplete": lambda: incomplete(4, left=7),
    "empty": lambda: incomplete(4, left=0),
}


def incomplete(size: int, left: int) -> ErrorMap:
    found = error_map(size)
    for place in list(found.grid)[left:]:
        del found.grid[place]
    return found


@pytest.mark.parametrize("name", MAPS)
def test_no_text_lies_over_another(name: str) -> None:
    with warnings.catch_warnings(), settings():
        warnings.simplefilter("error")
        figure = figure_of(MAPS[name](), "relative", None)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = [
            (text.get_text(), text.get_window_extent(renderer))
            for text in figure.findobj(Text)
            if text.get_visible() and text.get_text().strip()
        ]
    assert len(boxes) > 10
    page = Bbox.from_bounds(0, 0, *figure.get_size_inches() * figure.dpi)
    # matplotlib also makes labels for ticks outside of the page.
    shown = [(words, box) for words, box in boxes if page.overlaps(box)]
    touching = [
        (a, b)
        for (a, first), (b, second) in itertools.combinations(shown, 2)
        if Bbox.intersection(first.padded(-1), second.padded(-1)) is not None
    ]
    assert touching == []


@pytest.mark.parametrize("suffix", [".PNG", ".svg", ".pdf"])
def test_the_same_map_gives_the_same_file(tmp_path: Path, suffix: str) -> None:
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    first = error_map(3).plot(tmp_path / f"a{suffix}").read_bytes()
    second = error_map(3).plot(tmp_path / f"b{suffix}").read_bytes()
    assert first.startswith(starts[suffix.lower()])
    assert first == second


@pytest.mark.parametrize("metric", ["cosine", "mse"])
def test_every_measure_can_be_drawn(tmp_path: Path, metric: str) -> None:
    assert error_map(3).plot(tmp_path / "a.png", metric=metric, chain="blocks").stat().st_size > 10_000


def test_what_is_no_picture_and_what_is_no_measure_is_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a", "a.png.txt"):
        with pytest.raises(UsageError, match="no picture"):
            error_map(3).plot(tmp_path / name)
    with pytest.raises(UsageError, match="no metric 'error'"):
        error_map(3).plot(tmp_path / "a.png", metric="error")
    with pytest.raises(UsageError, match="no chain 'head'"):
        error_map(3).plot(tmp_path / "a.png", chain="head")
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    error_map(3).plot(tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


def test_numbers_lie_between_the_cells_of_their_neighbours() -> None:
    scale = Scale((0.0, 0.1, 0.5))
    assert [scale(v) for v in (0.0, 0.05, 0.1, 0.3, 0.5)] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert scale(0.6) == pytest.approx(2.25)
    assert scale(0.9) != scale(0.9)  # beyond the last cell there is no place


@pytest.mark.parametrize("order", ORDERS)
def test_a_recipe_s_path_turns_where_its_schedule_does(order: str) -> None:
    schedule = CoefficientSchedule.__new__(CoefficientSchedule)  # its path needs no network
    schedule.start, schedule.end, schedule.order = (0.9, 0.1), (0.3, 0.7), order
    schedule.policy, schedule.update_every, schedule.end_step = "linear", 1, 100
    turns = corners(schedule.start, schedule.end, order)
    assert turns[0] == schedule.start
    assert turns[-1] == schedule.end
    if len(turns) == 3:
        assert schedule.coefficients_at(50) == pytest.approx(turns[1])


@pytest.mark.parametrize(
    "value", [0.0, 1e-300, 9.99e-8, 0.00999, 0.0999, 0.994, 0.996, 9.96, 998.6, 1e300, -0.5]
)
def test_a_number_in_a_cell_is_short_and_near(value: float) -> None:
    text = short_number(value)
    assert len(text) <= 6
    if abs(value) < 900:
        assert float(text) == pytest.approx(value, rel=0.06, abs=0)
