"""`revsurgeon bench`: rows measured here, compared, drawn, and rows that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from revsurgeon.memory import bench as bench_module

from .conftest import Run

QUICK = ("--strategy", "stored", "--strategy", "re2", "--device", "cpu", "--steps", "1")


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_rows_are_measured_compared_and_drawn(revsurgeon: Run) -> None:
    first = revsurgeon("bench", "demo", "--batch", "64", *QUICK, "--output", "before.json", "--plot", "a.png")
    assert first.code == 0, first.err
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    second = revsurgeon("bench", "demo", "--batch", "64", *QUICK[2:], "--compare", "before.json")
    assert second.code == 0, second.err
    assert "+0.0%" in second.out  # of the peak: the same step takes the same memory
    document = json.loads(Path("before.json").read_text(encoding="utf-8"))
    stored, re2 = document["rows"]
    assert stored["status"] == re2["status"] == "measured"
    assert re2["kept"] < stored["kept"] / 4
    assert stored["error"] == 0.0 < re2["error"] < 1e-5
    # Within the goals of the prediction.
    assert stored["predicted_kept"] == pytest.approx(stored["kept"], rel=0.05)
    assert stored["predicted_peak"] == pytest.approx(stored["peak"], rel=0.10)
    assert document["surroundings"]["device"]["type"] == "cpu"
    assert document["surroundings"]["versions"]["torch"]


def test_what_is_beyond_the_memory_is_a_row_that_says_so(
    revsurgeon: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "available", lambda device: 1_000_000)
    result = revsurgeon("bench", "demo", "--batch", "64", *QUICK, "--json")
    assert result.code == 0, result.err
    assert {row["status"] for row in json.loads(result.out)["rows"]} == {"does not fit"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "none"), "is no number"),
        (("--batch", "1,2", "--depth", "2,4"), "have several values"),
        (("--compare", "missing.json"), "no result of"),
        (("--optimizer", "lion"), "Known: adamw"),
        (("--optimizer", "adam8bit"), "no such optimizer here"),
        (("--steps", "0"), "at least one"),
        (("--plot", "a.txt"), "no picture"),
    ],
)
def test_what_makes_no_sense_is_a_clear_error(revsurgeon: Run, options: tuple[str, ...], words: str) -> None:
    result = revsurgeon("bench", "demo", "--device", "cpu", *options)
    assert result.code == 2
    assert words in result.err


def test_a_result_that_is_there_is_kept_and_a_bad_place_is_told_before_anything_is_measured(
    revsurgeon: Run,
) -> None:
    Path("before.json").write_text("mine", encoding="utf-8")
    for option, path, words in (
        ("--output", "before.json", "there already"),
        ("--output", ".", "a directory is where"),
        ("--output", "no/x.json", "is not there"),
        ("--plot", "no/x.png", "is not there"),
    ):
        result = revsurgeon("bench", "demo", option, path)
        assert result.code == 2
        assert words in result.err
        assert "Starting torch" not in result.err
    assert Path("before.json").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in Path.cwd().iterdir()] == ["before.json"]
