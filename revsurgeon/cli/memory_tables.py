"""How a memory plan looks on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from revsurgeon.memory.quantity import size

if TYPE_CHECKING:
    from revsurgeon.memory.plan import Fit, MemoryPlan, Row

_COLUMNS = 6
"""Ways in one table: more do not fit a terminal of 80 columns."""

_PARTS = ("parameters", "gradients", "optimizer", "inputs", "activations", "temporaries")


def heading(plan: MemoryPlan) -> str:
    """What was planned, in one line."""
    shapes = ", ".join("x".join(map(str, shape)) for shape in plan.inputs.values())
    settings = plan.settings
    words = [plan.name, shapes, str(settings["optimizer"]), f"amp {settings['amp']}", plan.device]
    if settings["accumulate"] > 1:
        words.append(f"{settings['accumulate']} passes a step")
    if settings["zero"]:
        words.append(f"ZeRO {settings['zero']} on {settings['world_size']}")
    return ", ".join(words) + f"; reversible at ({plan.point[0]:g}, {plan.point[1]:g})"


def peaks_tables(plan: MemoryPlan) -> list[Table]:
    """What is alive at the peak of each way, and when and where that is: a column a way, six to a table."""
    return [_peaks_table(plan.rows[first : first + _COLUMNS]) for first in range(0, len(plan.rows), _COLUMNS)]


def _peaks_table(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(name_of(row), justify="right", overflow="fold")
    table.add_row("peak", *(size(row.peak) for row in rows), style="bold")
    for name in _PARTS:
        table.add_row(f"  {name}", *(size(row.parts.get(name, 0)) for row in rows))
    table.add_row("kept", *(size(row.kept) for row in rows))
    table.add_row("x floor", *(f"{row.floors:.1f}" for row in rows))
    table.add_row("time", *(f"x{row.time_ratio:.2f}" for row in rows))
    table.add_row("peak is in", *(row.phase for row in rows))
    modules = [row.module if row.module and row.phase != "optimizer" else "" for row in rows]
    if any(modules):
        table.add_row("  module", *modules)
    return table


def fits_table(plan: MemoryPlan) -> Table:
    """A line for each way: the largest size that fits, and the one above it."""
    what = (plan.vary or "batch").replace("-", " ")
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    table.add_column(f"in {size(plan.limit or 0)}", no_wrap=True)
    for column in (f"largest {what}", "peak", "does not fit", "its peak", "time a sample"):
        table.add_column(column, justify="right")
    for fit in plan.fits:
        largest = "none" if fit.largest is None else str(fit.largest)
        peak = size(fit.peak) if fit.largest is not None else ""
        above = ("", "") if fit.next is None else (str(fit.next), size(fit.peak_of_next or 0))
        table.add_row(name_of(fit), largest, peak, *above, f"x{fit.time_ratio:.2f}")
    return table


def name_of(row: Row | Fit) -> str:
    """A way in one word, as --strategy takes it, and its adapters."""
    return row.strategy if row.lora_rank is None else f"{row.strategy}, LoRA {row.lora_rank}"
