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
    page.write_text(f"{before}{BEGIN}\n\n{tables(found)}\n{END}{after}", encoding="utf-8")


def tables(found: dict[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    lines = [
        "| network | way to train | kept, MB: predicted | measured | off by | peak, MB: predicted | measured "
        "| off by | time: predicted | measured |",
        "|" + " --- |" * 10,
    ]
    off_kept: list[float] = []
    off_peak: list[float] = []
    for title, rows in found["cases"].items():
        stored = next((r for r in rows if r["strategy"] == "stored"), None)
        for row in rows:
            if row["status"] != "measured" or row["predicted_peak"] is None:
                lines.append(f"| {title} | {row['title']} |" + " not measured |" * 1 + " |" * 7)
                continue
            kept, peak = _off(row, "kept"), _off(row, "peak")
            off_kept.append(kept)
            off_peak.append(peak)
            predicted = row["predicted_seconds"] / stored["predicted_seconds"] if stored else None
            ratio = row["seconds"] / stored["seconds"] if stored else None
            lines.append(
                f"| {title} | {row['title']} | {_mb(row['predicted_kept'])} | {_mb(row['kept'])} | {kept:+.1%} "
                f"| {_mb(row['predicted_peak'])} | {_mb(row['peak'])} | {peak:+.1%} "
                f"| {'' if predicted is None else f'{predicted:.2f}'} | {'' if ratio is None else f'{ratio:.2f}'} |"
            )
    return "\n".join([*_summary(off_kept, off_peak), "", *lines, ""])


def _summary(off_kept: Sequence[float], off_peak: Sequence[float]) -> list[str]:
    lines = []
    for what, values, goal in (("kept", off_kept, KEPT_GOAL), ("the peak", off_peak, PEAK_GOAL)):
        if not values:
            continue
        sizes = sorted(map(abs, values))
        within = sum(size <= goal for size in sizes)
        lines.append(
            f"- {what}: {within} of {len(sizes)} rows within {goal:.0%}; median {statistics.median(sizes):.1%}, "
            f"worst {sizes[-1]:.1%}."
        )
    return lines


def _off(row: dict[str, Any], what: str) -> float:
    return float(row[f"predicted_{what}"] / row[what] - 1.0)


def _mb(number: int) -> str:
    return f"{number / 1e6:.1f}"
