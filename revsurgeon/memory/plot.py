"""The picture of a plan: one stacked bar for every way to train, and the limit as a line.

Colours are Okabe and Ito's, which the colour-blind tell apart; hatches tell neighbours apart in grey too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errormap.pictures import check_picture, save
from revsurgeon.memory.plan import MemoryPlan, Row
from revsurgeon.memory.quantity import size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {
    "parameters": ("#0072B2", ""),
    "gradients": ("#56B4E9", "///"),
    "optimizer": ("#009E73", ""),
    "inputs": ("#999999", ""),
    "activations": ("#E69F00", ""),
    "temporaries": ("#F0E442", "\\\\\\"),
}
"""Colour and hatch of each category."""

LABELS = {"inputs": "inputs and buffers", "optimizer": "optimizer states"}


def draw(plan: MemoryPlan, path: Path) -> Path:
    """Draw a plan.

    Args:
        plan: any.
        path: ends in .png, .svg or .pdf.

    Raises:
        UsageError: another kind of file.
    """
    check_picture(path)
    import matplotlib

    chosen: Any = {"font.size": 9, "svg.hashsalt": "revsurgeon", "hatch.linewidth": 0.5}
    with matplotlib.rc_context(chosen):
        return save(figure_of(plan), path)


def figure_of(plan: MemoryPlan) -> Figure:
    """Draw without pyplot, whose windows and backend belong to whoever calls this."""
    from matplotlib.figure import Figure

    rows = plan.rows[::-1]  # the first one on top
    figure = Figure(figsize=(8.2, 1.7 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    unit, name = _unit(max(row.peak for row in rows))
    left = [0.0] * len(rows)
    for category, (colour, hatch) in LOOKS.items():
        widths = [row.parts.get(category, 0) / unit for row in rows]
        axes.barh(
            range(len(rows)), widths, left=left, color=colour, hatch=hatch, edgecolor="white",
            linewidth=0.4, height=0.72, label=LABELS.get(category, category),
        )  # fmt: skip
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        axes.text(end, place, f" {size(row.peak)}", va="center", ha="left", fontsize=8.5)
    right = max(left)
    if plan.limit is not None and plan.limit / unit < 1.6 * right:  # one far away would squeeze the bars
        axes.axvline(plan.limit / unit, color="black", linestyle="--", linewidth=1.2)
        axes.text(plan.limit / unit, len(rows) - 0.45, f" {size(plan.limit)}", fontsize=8.5, va="bottom")
        right = max(right, plan.limit / unit)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set_xlim(0, right * 1.14)
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xlabel(f"memory at the peak of one training step, {name}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    shapes = ", ".join("x".join(map(str, shape)) for shape in plan.inputs.values())
    figure.suptitle(f"{plan.name}, {shapes}, {plan.settings['optimizer']}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=6, fontsize=8, frameon=False, handlelength=1.4)
    return figure


def _label(row: Row) -> str:
    return row.title if row.lora_rank is None else f"{row.title}, LoRA {row.lora_rank}"


def _unit(largest: int) -> tuple[int, str]:
    return (1024**3, "GiB") if largest >= 1024**3 else (1024**2, "MiB")
