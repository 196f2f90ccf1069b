"""Pictures of measured rows: memory against what was varied, and time against memory, with a Pareto front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errormap.pictures import check_picture, save
from revsurgeon.memory.report import BenchReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {
    "stored": ("#000000", "o"),
    "checkpoint": ("#0072B2", "s"),
    "float": ("#E69F00", "^"),
    "exact": ("#D55E00", "D"),
    "chunked": ("#CC79A7", "v"),
    "re2": ("#009E73", "P"),
}
"""Colour (Okabe and Ito's) and mark of each way."""

_VARIED = {"depth": "blocks", "frames": "frames", "image_size": "image size", "batch": "batch"}
_MIB = 1024**2


def draw(report: BenchReport, path: Path) -> Path:
    """Draw a report.

    Raises:
        UsageError: not a .png, .svg or .pdf file.
    """
    check_picture(path)
    import matplotlib

    chosen: Any = {"font.size": 9, "svg.hashsalt": "revsurgeon"}
    with matplotlib.rc_context(chosen):
        return save(figure_of(report), path)


def varied(report: BenchReport) -> str | None:
    """Which size has several values, if one has."""
    for name in _VARIED:
        if len({row.sizes.get(name) for row in report.rows}) > 1:
            return name
    return None


def figure_of(report: BenchReport) -> Figure:
    """Draw without pyplot."""
    from matplotlib.figure import Figure

    name = varied(report)
    figure = Figure(figsize=(10.0 if name else 7.0, 4.4), layout="constrained")
    panels = figure.subplots(1, 2 if name else 1, squeeze=False)[0]
    if name:
        _against(panels[0], report, name)
    _front(panels[-1], report, name)
    device = report.surroundings["device"]["name"]
    figure.suptitle(f"{report.name}, {device}, {report.settings['optimizer']}", fontsize=10)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return figure


def _against(axes: Axes, report: BenchReport, name: str) -> None:
    """Peak against what was varied, with the prediction as a thin line."""
    for strategy, (colour, mark) in LOOKS.items():
        rows = sorted((r for r in report.rows if r.strategy == strategy), key=lambda r: r.sizes[name])
        measured = [(r.sizes[name], r.peak / _MIB) for r in rows if r.peak is not None]
        predicted = [(r.sizes[name], r.predicted_peak / _MIB) for r in rows if r.predicted_peak is not None]
        if measured:
            title = rows[0].title
            axes.plot(*zip(*measured, strict=True), color=colour, marker=mark, markersize=5, label=title)
        if predicted:
            axes.plot(*zip(*predicted, strict=True), color=colour, linewidth=0.8, linestyle=":")
    axes.set_xlabel(_VARIED[name])
    axes.set_ylabel("peak of a step, MiB (dotted: predicted)")
    axes.set_ylim(bottom=0)


def _front(axes: Axes, report: BenchReport, name: str | None) -> None:
    """Time against memory at the largest size; ways on the line are beaten by none in both."""
    rows = [r for r in report.rows if r.peak is not None and r.seconds is not None]
    if name:
        largest = max((r.sizes[name] for r in rows), default=None)
        rows = [r for r in rows if r.sizes[name] == largest]
        axes.set_title(f"at {_VARIED[name]} {largest}", fontsize=9, loc="left")
    points = {r.strategy: ((r.peak or 0) / _MIB, r.seconds or 0.0) for r in rows}
    for row in rows:
        colour, mark = LOOKS[row.strategy]
        x, y = points[row.strategy]
        axes.plot([x], [y], color=colour, marker=mark, linestyle="", markersize=7, label=row.title)
    front = sorted(p for p in points.values() if not any(_beats(q, p) for q in points.values()))
    if front:
        axes.plot(*zip(*front, strict=True), color="#999999", linewidth=1, zorder=0)
    axes.set_xlabel("peak of a step, MiB")
    axes.set_ylabel("seconds of a step")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]
