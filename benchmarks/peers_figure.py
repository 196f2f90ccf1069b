"""Draw the comparison: what each way keeps and how high it peaks, of stored activations, and against depth.

A way whose gradients are wrong, with dropout off or on, is crossed out: what it saves is worth nothing there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers_goals import MEASURED, is_wrong
from benchmarks.peers_networks import DEPTHS, SUBJECTS
from benchmarks.peers_ways import WAYS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = ("vit-s", "vit-l", "videomae-s", "swin-t", "video-swin-t", "resnet-50")
LINES: dict[str, dict[str, Any]] = {
    "stored": {"color": "#000000", "marker": "o", "linestyle": "-"},
    "checkpoint": {"color": "#b35900", "marker": "s", "linestyle": "--"},
    "revtorch": {"color": "#888888", "marker": "D", "linestyle": ":"},
    "exact-0.1": {"color": "#2a6fb0", "marker": "^", "linestyle": "-."},
    "re2": {"color": "#5fa8d9", "marker": "v", "linestyle": ":"},
}
KEPT, PEAK = "#2a6fb0", "#b35900"
MEGABYTE = 1e6

Row = dict[str, Any]


def draw(document: dict[str, Any], target: Path) -> None:
    """Write the figure of one device's results.

    Args:
        document: as `benchmarks.peers` writes it; networks that are not there are left out.
        target: a .png file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {(row["network"], row["row"]): row for row in document["rows"] if row["status"] == MEASURED}
    panels = [name for name in PANELS if (name, "stored") in rows] or [
        name for name in SUBJECTS if (name, "stored") in rows
    ]
    ways = [way for way in WAYS if any(key[1] == way for key in rows)]
    depths = {name: depth for name, depth in DEPTHS.items() if any(key[0] == name for key in rows)}
    with pyplot.rc_context({"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False}):
        bands = -(-len(panels) // 3)
        heights = [0.27 * len(ways) + 0.3] * bands + [2.9]
        figure = pyplot.figure(figsize=(11, sum(heights) + 1.5), layout="constrained")
        grid = figure.add_gridspec(bands + 1, 3, height_ratios=heights)
        for place, name in enumerate(panels):
            band, column = divmod(place, 3)
            axes = figure.add_subplot(grid[band, column])
            _draw_network(axes, name, ways, rows, named=column == 0)
        for place, (what, title) in enumerate((("held", "held"), ("peak_without_gradients", "peak"))):
            axes = figure.add_subplot(grid[bands, place])
            _draw_depths(axes, depths, rows, what, f"ViT-S by depth: {title}")
        handles, labels = axes.get_legend_handles_labels()
        names = figure.add_subplot(grid[bands, 2])
        names.axis("off")
        names.legend(handles, labels, loc="center left", frameon=False, fontsize=8)
        figure.legend(handles=_marks(), loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(target, dpi=140, metadata={"Software": None})
        pyplot.close(figure)


def _draw_network(
    axes: Axes, name: str, ways: list[str], rows: dict[tuple[str, str], Row], *, named: bool
) -> None:
    """One network: a line a way, from what it keeps to its peak."""
    stored = rows[name, "stored"]
    for place, way in enumerate(ways):
        row = rows.get((name, way))
        if row is None:
            axes.text(0.5, place, "no figures", ha="center", va="center", color="#888888", fontsize=7,
                      transform=axes.get_yaxis_transform())  # fmt: skip
            continue
        errors = row["error_float64"], row["error_dropout"]
        wrong = any(is_wrong(error, stored["error_float64"]) for error in errors)
        for what, color, shift in (("held", KEPT, -0.14), ("peak_without_gradients", PEAK, 0.14)):
            share = row[what] / stored[what]
            marker, size = ("x", 5) if wrong else ("o", 4)
            axes.plot([share], [place + shift], color=color, linestyle="", marker=marker, markersize=size)
    axes.set_xscale("log")
    axes.set_xlim(0.008, 3)
    axes.set_xticks([0.01, 0.1, 1], ["1/100", "1/10", "1"])
    axes.axvline(1, color="#bbbbbb", linewidth=0.6, zorder=0)
    axes.set_yticks(range(len(ways)), [WAYS[way].title for way in ways] if named else [""] * len(ways))
    axes.set_ylim(len(ways) - 0.4, -0.6)
    axes.set_title(SUBJECTS[name].title, loc="left", fontsize=9)
    axes.grid(axis="both", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)


def _marks() -> list[Any]:
    from matplotlib.lines import Line2D

    def mark(color: str, marker: str, label: str) -> Line2D:
        return Line2D([], [], color=color, marker=marker, linestyle="", label=label)

    return [
        mark(KEPT, "o", "held for backward, of stored"),
        mark(PEAK, "o", "peak without gradients, of stored"),
        mark("#555555", "x", "gradients wrong, dropout off or on"),
    ]


def _draw_depths(
    axes: Axes, depths: dict[str, int], rows: dict[tuple[str, str], Row], what: str, title: str
) -> None:
    """One network, deeper and deeper."""
    for way, style in LINES.items():
        points = [(d, rows[name, way][what] / MEGABYTE) for name, d in depths.items() if (name, way) in rows]
        if points:
            axes.plot(*zip(*points, strict=True), label=WAYS[way].title, markersize=4, **style)
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(list(depths.values()), [str(depth) for depth in depths.values()])
    axes.minorticks_off()
    axes.set_xlabel("blocks")
    axes.set_ylabel("MB")
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
