"""The picture of a chain: two streams through three segments, and the way back.

python -m benchmarks.chain_figure    # docs/images/chain.png
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "chain.png"

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#777777"
_X, _Y = 1.0, 0.0
"""Heights of the two streams."""
_SEGMENTS = 3
_STEP = 2.0


def draw(path: Path = PICTURE) -> Path:
    """Draw it.

    Args:
        path: of the picture; its directory is there.
    """
    figure, panels = plt.subplots(2, 1, figsize=(8.0, 4.6), height_ratios=[1, 1])
    _forward(panels[0])
    _backward(panels[1])
    for axes in panels:
        axes.set_xlim(-1.3, _SEGMENTS * _STEP + 2.1)
        axes.set_ylim(-0.55, 1.75)
        axes.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _forward(axes: Axes) -> None:
    axes.set_title("forward: only the streams at the end are kept", loc="left", fontsize=10)
    _arrow(axes, (-1.1, _X), (-0.25, _X), "x", _GREY)
    _arrow(axes, (-0.9, _X - 0.1), (-0.2, _Y + 0.1), r"$\beta$", _ORANGE)
    for i in range(_SEGMENTS):
        _segment(axes, i, _GREY)
    _streams(axes, kept=_SEGMENTS)
    end = _SEGMENTS * _STEP
    _arrow(axes, (end + 0.3, _X), (end + 1.2, 0.6), "", _GREY)
    _arrow(axes, (end + 0.3, _Y), (end + 1.2, 0.4), "", _GREY)
    axes.text(end + 1.65, 0.5, "merged", ha="center", va="center", fontsize=9)


def _backward(axes: Axes) -> None:
    axes.set_title("backward: one input after the other is rebuilt from them", loc="left", fontsize=10)
    for i in range(_SEGMENTS):
        left, right = i * _STEP, (i + 1) * _STEP
        _arrow(axes, (right - 0.2, _Y + 0.12), (left + 0.25, _X - 0.12), r"$/\,\beta$", _ORANGE)
        taken = rf"$-\,G_{i + 1}(x_{i})$"
        _arrow(axes, (right - 0.2, _X - 0.12), (left + 0.25, _Y + 0.12), taken, _BLUE)
    _streams(axes, kept=_SEGMENTS)


def _streams(axes: Axes, kept: int) -> None:
    for i in range(_SEGMENTS + 1):
        for name, height in (("x", _X), ("y", _Y)):
            face = "#ffe9a8" if i == kept else "white"
            shape = {"boxstyle": "circle,pad=0.25", "facecolor": face, "edgecolor": "black"}
            axes.text(i * _STEP, height, rf"${name}_{i}$", ha="center", va="center", fontsize=10, bbox=shape)


def _segment(axes: Axes, i: int, colour: str) -> None:
    left, right = i * _STEP, (i + 1) * _STEP
    middle = left + 1.0
    _arrow(axes, (left + 0.25, _X), (middle - 0.3, _X), "", colour)
    _arrow(axes, (middle + 0.3, _X), (right - 0.25, _X), "", colour)
    box = {"boxstyle": "round,pad=0.4", "facecolor": _BLUE, "edgecolor": "none"}
    place = {"ha": "center", "va": "center", "fontsize": 10}
    axes.text(middle, _X, rf"$G_{i + 1}$", fontdict={"color": "white", **place}, bbox=box)
    axes.text(middle, _X + 0.42, r"$F + \alpha\, x$", ha="center", fontsize=8, color=_BLUE)
    _arrow(axes, (left + 0.2, _Y + 0.12), (right - 0.25, _X - 0.12), "+", _GREY)
    _arrow(axes, (left + 0.2, _X - 0.15), (right - 0.25, _Y), r"$\beta$", _ORANGE)


def _arrow(axes: Axes, start: Sequence[float], end: Sequence[float], label: str, colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour}
    axes.annotate("", xy=(end[0], end[1]), xytext=(start[0], start[1]), arrowprops=style)
    if label:
        # Nearer to the end, where lines that cross are apart.
        x, y = (a + 0.72 * (b - a) for a, b in zip(start, end, strict=True))
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.text(x, y, label, ha="center", va="center", fontsize=9, color=colour, bbox=box)


if __name__ == "__main__":
    print(draw(), file=sys.stderr)
