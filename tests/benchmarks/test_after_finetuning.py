"""The table of docs/export.md is that of the result file, and what it is measured on is what it says."""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks.after_finetuning import PATHS, RESULT, shifted, summary
from benchmarks.digits import MEAN, STD, load_split
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def cell(of: dict[str, float]) -> str:
    return f"{100 * of['mean']:.1f} ± {100 * of['deviation']:.1f}"


def row(path: dict[str, Any]) -> str:
    start, end = (f"({alpha:g}, {beta:g})" for alpha, beta in (path["start"], path["end"]))
    where = start if start == end else f"{start} to {end}"
    cells = [path["path"], where, *(cell(path[name]) for name in ("at_the_end", "at_1_0", "lost"))]
    return f"| {' | '.join(cells)} |"


def test_the_table_is_that_of_the_result_file() -> None:
    document = json.loads(RESULT.read_text(encoding="utf-8"))
    assert f"`{document['command']}`" in PAGE
    assert [path["path"] for path in document["paths"]] == list(PATHS)
    rows = [row(path) for path in document["paths"]]
    assert [line for line in PAGE.splitlines() if line in rows] == rows
    assert {len(path["runs"]) for path in document["paths"]} == {5}


def test_the_summary_is_of_the_runs() -> None:
    runs = {"0": {"at_the_end": 0.9, "at_1_0": 0.5}, "1": {"at_the_end": 0.7, "at_1_0": 0.5}}
    found = summary(runs)
    assert found["at_1_0"] == {"mean": 0.5, "deviation": 0.0}
    assert abs(found["lost"]["mean"] - 0.3) < 1e-12
    assert abs(found["lost"]["deviation"] - 0.02**0.5) < 1e-12


def test_the_shift_turns_the_digits_and_exchanges_black_and_white() -> None:
    eps = torch.finfo(torch.float32).eps
    images = load_split().test_images
    again = images
    for _ in range(4):
        again = shifted(again)
    # At each of the four turns an image is subtracted from a constant, both below 2: one rounding.
    assert (again - images).abs().max() <= 4 * 2 * eps
    corner = torch.full((1, 1, 8, 8), -MEAN / STD)
    corner[..., 0, -1] = (1 - MEAN) / STD  # white, upper right
    turned = shifted(corner)
    assert (turned[..., 0, 0] + MEAN / STD).abs() <= 2 * eps  # black, upper left
    assert (turned[..., 1:, :] - (1 - MEAN) / STD).abs().max() <= 2 * eps
