"""The picture of a map: gradient error beside drift, over alpha and beta, as in Dr2Net's Figure 3.

Every cell is as large as any other, whatever the grid; what lies between two values of the grid is drawn
between their cells. The colours are cividis, which is even in grey and to the colour-blind, and everything
that is said by a colour is also said by a line, a mark or a number.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errormap.error_map import ErrorMap
from revsurgeon.errormap.growth import FINE, GARBAGE
from revsurgeon.errormap.pictures import check_picture, save
from revsurgeon.errormap.short import short_number
from revsurgeon.errormap.ways import DASHES, draw_legend, draw_ways

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure

TITLES = {
    "relative": "relative gradient error",
    "cosine": "1 - cosine of the gradients",
    "max_abs": "largest error of a gradient's element",
    "mean_abs": "mean error of a gradient's elements",
    "mse": "mean squared error of a gradient's elements",
}

_NUMBERS_UP_TO = 13  # cells an axis; with more, numbers in them would overlap
_TICKS_UP_TO = 13
_CHARACTERS_ACROSS = 48


def draw(found: ErrorMap, path: Path, *, metric: str = "relative", chain: str | None = None) -> Path:
    """Draw a map, complete or not.

    Args:
        found: what was measured.
        path: ends in .png, .svg or .pdf.
        metric: of the gradients.
        chain: only this chain's parameters.

    Raises:
        UsageError: another kind of file, or a measure that the map does not have.
    """
    check_picture(path)
    found.check(metric, found.arithmetics[0], chain)
    with settings():
        return save(figure_of(found, metric, chain), path)


def settings() -> AbstractContextManager[None]:
    """What matplotlib is to be set to while a map is drawn."""
    import matplotlib

    chosen: Any = {"font.size": 8.5, "svg.hashsalt": "revsurgeon", "hatch.linewidth": 0.6}
    return matplotlib.rc_context(chosen)


def figure_of(found: ErrorMap, metric: str, chain: str | None) -> Figure:
    """Draw without pyplot, whose windows and backend belong to whoever calls this."""
    from matplotlib.figure import Figure

    count = len(found.arithmetics) + 1
    figure = Figure(figsize=(5.1 * count, 5.3), layout="constrained")
    panels = figure.subplots(1, count)
    for panel, arithmetic in zip(panels, found.arithmetics, strict=False):
        _draw_errors(figure, panel, found, metric, arithmetic, chain)
    _draw_drift(figure, panels[-1], found)
    for panel in panels:
        draw_ways(panel, found)
    draw_legend(figure, found)
    of = found.name if chain is None else f"{found.name}, chain {chain}"
    segments = ", ".join(str(c["segments"]) for c in found.configuration["chains"])
    figure.suptitle(f"{of}  ({segments} segments)", fontsize=10)
    return figure


def _draw_errors(
    figure: Figure, panel: Panel, found: ErrorMap, metric: str, arithmetic: str, chain: str | None
) -> None:
    values = found.values(metric, arithmetic, chain)
    if metric == "cosine":
        values = [[None if v is None else 1.0 - v for v in row] for row in values]
    relative = metric == "relative"
    low, high = _decades(values)
    if relative:
        low, high = min(low, 1e-7), 1.0
    shades = _draw_cells(figure, panel, found, values, low=low, high=high)
    colours = figure.colorbar(
        shades, ax=panel, shrink=0.82, pad=0.02, extend="both" if relative else "neither"
    )
    panel.set_title(f"{TITLES[metric]}, {arithmetic}", fontsize=9, loc="left")
    if relative:
        for limit in (FINE, GARBAGE):
            colours.ax.axhline(limit, color="white", linewidth=2.4)
            colours.ax.axhline(limit, color="black", linewidth=1.0, linestyle=DASHES[limit])
        regions = (("fine", math.sqrt(low * FINE)), ("risky", 1e-2), ("garbage", math.sqrt(GARBAGE)))
        for word, at in regions:
            shade = "white" if at < FINE else "black"
            colours.ax.text(
                0.5, at, word, rotation=90, ha="center", va="center", color=shade, fontsize=7.5,
                transform=colours.ax.get_yaxis_transform(),
            )  # fmt: skip
    _draw_contours(panel, found, arithmetic, chain)


def _draw_contours(panel: Panel, found: ErrorMap, arithmetic: str, chain: str | None) -> None:
    """Lines of the relative error 1e-1 and 1e-3, whatever measure the cells show."""
    import numpy

    values = found.values("relative", arithmetic, chain)
    logs = numpy.array(
        [[math.nan if v is None else math.log10(max(v, 1e-9)) for v in row] for row in values], dtype=float
    )
    if min(logs.shape) < 2:
        return
    for limit, dashes in DASHES.items():
        level = math.log10(limit)
        if not (numpy.nanmin(logs, initial=math.inf) < level < numpy.nanmax(logs, initial=-math.inf)):
            continue
        for colour, width in (("white", 2.6), ("black", 1.1)):
            panel.contour(
                numpy.ma.masked_invalid(logs), levels=[level], colors=colour, linewidths=width,
                linestyles=[dashes],
            )  # fmt: skip


def _draw_drift(figure: Figure, panel: Panel, found: ErrorMap) -> None:
    values = found.values("drift")
    shades = _draw_cells(figure, panel, found, values, low=min(_decades(values)[0], 1e-2), high=2.0)
    figure.colorbar(shades, ax=panel, shrink=0.82, pad=0.02, extend="both")
    panel.set_title("drift: distance of the output from the pretrained network's", fontsize=9, loc="left")
    bits = [row[0] for row in found.values("bits")]
    right = panel.secondary_yaxis("right")
    labels = ["" if number is None else str(number) for number in bits]
    places = _ticks(labels)
    right.set_yticks(places, [labels[i] for i in places])
    right.set_ylabel("exact: bits an element and segment", labelpad=1)
    right.tick_params(length=2)


def _draw_cells(
    figure: Figure,
    panel: Panel,
    found: ErrorMap,
    values: list[list[float | None]],
    *,
    low: float,
    high: float,
) -> Any:
    import numpy
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    axes = found.axes
    numbers = numpy.array([[math.nan if v is None else v for v in row] for row in values], dtype=float)
    norm = LogNorm(low, high)
    # What is exactly zero has no logarithm; it is shown as the smallest.
    shown = numpy.where(numbers <= 0, low / 10, numbers)
    largest = max(len(axes.alphas), len(axes.betas))
    shades = panel.imshow(shown, origin="lower", cmap="cividis", norm=norm, aspect="auto")
    for row, beta in enumerate(axes.betas):
        for column, alpha in enumerate(axes.alphas):
            value = values[row][column]
            if value is None:
                waiting = (alpha, beta) not in found.grid
                panel.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5), 1, 1, facecolor="white", edgecolor="#777777", linewidth=0,
                        hatch="" if waiting else "////",
                    )
                )  # fmt: skip
            elif largest <= _NUMBERS_UP_TO:
                bright = float(norm(max(value, low))) > 0.55
                # In the lower left corner, where the paths, most of them along the valley, do not cross it.
                panel.text(
                    column - 0.46, row - 0.44, short_number(value), ha="left", va="bottom", zorder=4,
                    fontsize=min(8.5, 74 / max(largest, 8)), color="black" if bright else "white",
                    path_effects=[withStroke(linewidth=1.2, foreground=shades.to_rgba(shown[row, column]))],
                )  # fmt: skip
    for labels, room, put in (
        ([f"{alpha:.4g}" for alpha in axes.alphas], _CHARACTERS_ACROSS, panel.set_xticks),
        ([f"{beta:.4g}" for beta in axes.betas], None, panel.set_yticks),
    ):
        ticks = _ticks(labels, room)
        put(ticks, [labels[i] for i in ticks])
    panel.set_xlim(-0.5, len(axes.alphas) - 0.5)
    panel.set_ylim(-0.5, len(axes.betas) - 0.5)
    panel.set_xlabel("alpha (original skips)")
    panel.set_ylabel("beta (added skips)")
    return shades


def _ticks(labels: list[str], characters: int | None = None) -> list[int]:
    """Every so many labels that they do not touch, beside each other or above each other."""
    for step in range(1, len(labels) + 1):
        shown = labels[::step]
        wide = characters is not None and sum(len(label) + 1 for label in shown) > characters
        if len(shown) <= _TICKS_UP_TO and not wide:
            break
    return list(range(0, len(labels), step))


def _decades(values: list[list[float | None]]) -> tuple[float, float]:
    """The powers of ten around all values; what is exactly zero is below them."""
    found = [v for row in values for v in row if v is not None and 0.0 < v < 1e30]
    if not found:
        return 1e-7, 1.0
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    return 10.0**low, 10.0 ** max(high, low + 1)
