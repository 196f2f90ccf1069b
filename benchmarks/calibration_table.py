"""Writes the calibration's tables into docs/memory.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
BEGIN = "<!-- from here to the end mark: python -m benchmarks.calibration --table -->"
END = "<!-- end mark of the calibration -->"

KEPT_GOAL, PEAK_GOAL = 0.05, 0.10


def write_tables(found: dict[str, Any], page: Path = PAGE) -> None:
    """Replace what stands between the marks; nothing where the page has none."""
    if not page.exists():
        return
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        return
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{tables(found)}\n\n{END}{after}", encoding="utf-8")


def tables(found: dict[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    heads = ("network", "way to train", "kept: predicted", "measured", "off by")
    heads += ("peak: predicted", "measured", "off by")
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    off: dict[str, list[float]] = {"kept": [], "peak": [], "above": []}
    for title, rows in found["cases"].items():
        for row in rows:
            cells = [title, row["title"]]
            if row["status"] == "measured" and row["predicted_peak"] is not None:
                kept, peak = _off(row, "kept"), _off(row, "peak")
                off["kept"].append(kept)
                off["peak"].append(peak)
                off["above"].append((row["predicted_peak"] - row["peak"]) / (row["peak"] - row["states"]))
                cells += [_mb(row["predicted_kept"]), _mb(row["kept"]), f"{kept:+.1%}"]
                cells += [_mb(row["predicted_peak"]), _mb(row["peak"]), f"{peak:+.1%}"]
            else:
                cells += ["", row["status"], "", "", row["status"], ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*_summary(off), "", *lines])


def _summary(off: dict[str, list[float]]) -> list[str]:
    above = "the peak without parameters, optimizer states, inputs and buffers, which are known anyway"
    return [
        _line("kept between forward and backward", off["kept"], KEPT_GOAL),
        _line("the whole peak", off["peak"], PEAK_GOAL),
        _line(above, off["above"], PEAK_GOAL),
    ]


def _line(what: str, values: Sequence[float], goal: float) -> str:
    sizes = sorted(map(abs, values)) or [0.0]
    within = sum(size <= goal for size in sizes)
    return (
        f"- {what}: {within} of {len(values)} rows within {goal:.0%}; median {statistics.median(sizes):.1%}, "
        f"worst {sizes[-1]:.1%}."
    )


def _off(row: dict[str, Any], what: str) -> float:
    return float(row[f"predicted_{what}"] / row[what] - 1.0)


def _mb(number: int) -> str:
    return f"{number / 1e6:.1f}"
