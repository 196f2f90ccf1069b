"""docs/support.md says what the tests say: its cells are collected, and compared with their marks."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MATRIX = ROOT / "docs" / "support.md"
FOLDER = "tests/composition"


@dataclass(frozen=True)
class Row:
    """One line of a table: the cell of each arithmetic, and the tests behind them."""

    setting: str
    cells: dict[str, str]
    tests: tuple[str, ...]


class Collected:
    """A pytest plugin that keeps what was collected."""

    items: list[pytest.Item]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.items = list(items)


def rows() -> list[Row]:
    found = []
    for line in MATRIX.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("|") and cells[0] != "setting" and set(cells[0]) != {"-"}:
            setting, in_float, in_exact, tests = cells
            named = tuple(t if "/" in t else f"{FOLDER}/{t}" for t in re.findall(r"`([^`]+)`", tests))
            found.append(Row(setting, {"float": in_float, "exact": in_exact}, named))
    return found


@functools.cache
def collected() -> dict[str, list[pytest.Item]]:
    """Every test of the folder and of the files that the matrix names, by its name without parameters."""
    files = {test.split("::")[0] for row in rows() for test in row.tests}
    files |= {str(p.relative_to(ROOT)) for p in (ROOT / FOLDER).glob("test_*.py")} - {
        f"{FOLDER}/{Path(__file__).name}"
    }
    plugin = Collected()
    options = ["--collect-only", "-m", "", "-p", "no:terminal", "-p", "no:cacheprovider"]
    place = [f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
    paths = [str(ROOT / file) for file in sorted(files) if (ROOT / file).exists()]
    assert pytest.main([*options, *place, *paths], plugins=[plugin]) == 0
    by_name: dict[str, list[pytest.Item]] = {}
    for item in plugin.items:
        by_name.setdefault(item.nodeid.split("[")[0], []).append(item)
    return by_name


def of_arithmetic(items: list[pytest.Item], arithmetic: str) -> list[pytest.Item]:
    """The tests of one column: those of this arithmetic, and those that are not about one."""
    return [
        item
        for item in items
        if getattr(getattr(item, "callspec", None), "params", {}).get("arithmetic", arithmetic) == arithmetic
    ]


def expected_failure(item: pytest.Item) -> str | None:
    """Why a test is expected to fail; None if it is expected to pass."""
    mark = item.get_closest_marker("xfail")
    if mark is None:
        return None
    assert mark.kwargs.get("strict") is True, f"{item.nodeid}: an expected failure must be strict"
    return str(mark.kwargs["reason"])


def test_every_cell_is_a_test_that_says_the_same() -> None:
    assert len(rows()) > 80
    for row in rows():
        assert row.tests, row.setting
        for test in row.tests:
            assert test in collected(), f"{row.setting}: there is no {test}"
            for arithmetic, cell in row.cells.items():
                items = of_arithmetic(collected()[test], arithmetic)
                assert items, f"{test} has no case in {arithmetic} arithmetic"
                reasons = {expected_failure(item) for item in items}
                assert reasons == {cell.removeprefix("no: ") if cell.startswith("no: ") else None}, test
                assert cell.startswith("no: ") or cell in ("yes", "refused"), (row.setting, cell)
                assert (cell == "refused") == ("refused" in test), f"{test} is listed as {cell!r}"


def test_no_test_of_an_arithmetic_and_no_expected_failure_is_missing_from_the_matrix() -> None:
    named = {test for row in rows() for test in row.tests}
    missing = [
        name
        for name, items in collected().items()
        if name.startswith(FOLDER) and name not in named
        for item in items[:1]
        if "arithmetic" in getattr(getattr(item, "callspec", None), "params", {}) or expected_failure(item)
    ]
    assert missing == []


def test_every_part_of_the_matrix_has_the_same_columns() -> None:
    headers = [line for line in MATRIX.read_text().splitlines() if line.startswith("| setting")]
    assert set(headers) == {"| setting | float | exact | test |"}
    assert len(headers) == MATRIX.read_text().count("| --- | --- | --- | --- |")
