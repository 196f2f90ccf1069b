"""The points that a map is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from revsurgeon.errormap.grid import LARGEST, make_axes
from revsurgeon.errors import UsageError

TENTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def test_without_a_wish_it_is_every_tenth() -> None:
    axes = make_axes()
    assert axes.alphas == axes.betas == TENTHS
    assert len(axes.points) == 121


def test_a_grid_is_one_number_or_two() -> None:
    assert make_axes(11) == make_axes("11") == make_axes("11x11") == make_axes()
    assert make_axes("3x2").alphas == (0.0, 0.5, 1.0)
    assert make_axes("3x2").betas == (0.0, 1.0)


def test_values_replace_one_axis_and_are_put_in_order() -> None:
    axes = make_axes(3, betas="0.1, 0.01,0.1")
    assert (axes.alphas, axes.betas) == ((0.0, 0.5, 1.0), (0.01, 0.1))
    assert make_axes(alphas=[1, 0.9]).alphas == (0.9, 1.0)


def test_a_range_includes_its_end_and_has_round_numbers() -> None:
    assert make_axes(alphas="0:1:0.1").alphas == TENTHS
    assert make_axes(betas="0.1:0.35:0.1").betas == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("grid", ["", "1", "0", "-3", "3x", "x3", "3x3x3", "a", "1.5", "2x1", "3x99999", "²"])
def test_a_grid_of_another_form_is_refused(grid: str) -> None:
    with pytest.raises(UsageError, match="not a number of points"):
        make_axes(grid)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("", "no beta"),
        (",", "no beta"),
        ("a", "not a list of numbers"),
        ("0:1", "not a list of numbers"),
        ("0:1:0", "not a list of numbers"),
        ("0:1:-0.1", "not a list of numbers"),
        ("1:0:0.1", "no beta"),
        ("0:1:1e-9", "not a list of numbers"),
        ("nan", "not a list of numbers"),
        ("0:inf:1", "not a list of numbers"),
        ("1.1", "out of range"),
        ("-0.1", "out of range"),
        ("1e-6", "out of range"),
    ],
)
def test_values_that_are_no_betas_are_refused(values: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_axes(3, betas=values)


def test_a_map_that_no_picture_could_show_is_refused() -> None:
    side = int(LARGEST**0.5)
    assert len(make_axes(side).points) == LARGEST
    with pytest.raises(UsageError, match="at most 10,000"):
        make_axes(side + 1)


def test_asking_for_a_map_imports_no_torch_before_it_is_known_to_make_sense() -> None:
    code = (
        "import sys; from revsurgeon.cli.app import run; code = run(['errmap', 'demo', '--grid', 'x']);"
        "sys.exit(code * 10 + bool({'torch', 'numpy', 'matplotlib', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 20, done.stderr
