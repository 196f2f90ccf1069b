"""Draw activation_bytes.json: what a chain keeps against depth, and what whole networks keep.

    python -m benchmarks.activation_figure

draws the file in benchmarks/results again without measuring. Strategies differ by marker and line style, so
that the figure can be read in grey; both axes of bytes are logarithmic.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEGABYTE = 1e6
STYLES: dict[str, dict[str, Any]] = {
    "stored": {"color": "#000000", "marker": "o", "linestyle": "-"},
    "checkpoint": {"color": "#b35900", "marker": "s", "linestyle": "--"},
    "reversible, exact, beta 0.1": {"color": "#2a6fb0", "marker": "^", "linestyle": "-."},
    "reversible, float, beta 0.7": {"color": "#5fa8d9", "marker": "v", "linestyle": ":"},
}
LABELS = {
    "stored": "stored",
    "checkpoint": "torch checkpoint, a block each",
    "reversible, exact, beta 0.1": "reversible, exact, beta .1",
    "reversible, float, beta 0.7": "reversible, float, any beta",
}


def draw(document: dict[str, Any], target: Path) -> None:
    """Write the figure of a document that `activation_bytes` made.

    Args:
        document: with or without networks, with or without depths.
        target: a .png file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.2, 3.7), width_ratios=(1, 1.15))
        _draw_depths(left, document["depths"])
        _draw_networks(right, document["networks"])
        handles, labels = (left if document["depths"] else right).get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=4, frameon=False, handlelength=2.6)
        figure.tight_layout(rect=(0, 0, 1, 0.91), w_pad=2.5)
        figure.savefig(target, dpi=160, metadata={"Software": None})
        pyplot.close(figure)


def _draw_depths(axes: Axes, depths: list[dict[str, Any]]) -> None:
    """One chain, deeper and deeper."""
    for strategy, style in STYLES.items():
        sizes = [_bytes_of(entry, strategy, "in_chains") / MEGABYTE for entry in depths]
        axes.plot([entry["depth"] for entry in depths], sizes, label=LABELS[strategy], **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks([entry["depth"] for entry in depths])
    axes.set_xlabel("blocks of the vision transformer")
    axes.set_ylabel("MB kept for backward")
    axes.set_title("inside the chain of a ViT-S", loc="left", fontsize=9)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def _draw_networks(axes: Axes, networks: list[dict[str, Any]]) -> None:
    """Whole networks, stem and head and downsampling included."""
    names = [_short(entry["network"]) for entry in networks]
    for number, (strategy, style) in enumerate(STYLES.items()):
        sizes = [_bytes_of(entry, strategy, "saved") / MEGABYTE for entry in networks]
        places = [row + 0.12 * (number - 1.5) for row in range(len(names))]
        axes.plot(sizes, places, label=LABELS[strategy], **style | {"linestyle": ""})
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("MB kept for backward")
    axes.set_title("whole network", loc="left", fontsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def _bytes_of(entry: dict[str, Any], strategy: str, what: str) -> int:
    return next(row[what] for row in entry["bytes"] if row["strategy"] == strategy)


def _short(source: str) -> str:
    """The network's name without its library and the sizes of its input."""
    return re.sub(r"_(patch|window)\d+|_\d+$", "", source.rpartition(":")[2])


if __name__ == "__main__":
    results = Path(__file__).parent / "results" / "activation_bytes.json"
    draw(json.loads(results.read_text(encoding="utf-8")), results.with_suffix(".png"))
