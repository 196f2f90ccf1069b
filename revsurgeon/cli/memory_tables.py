"""How a memory plan looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from revsurgeon.memory.quantity import size

if TYPE_CHECKING:
    from revsurgeon.memory.plan import Fit, MemoryPlan, Row

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


def peaks_table(plan: MemoryPlan) -> Table:
    """A line for each way: what is alive at the peak, and when and where that is."""
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    table.add_column("way to train", no_wrap=True)
    for column in ("peak", *_PARTS, "kept", "x floor", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("peak is in")
    for row in plan.rows:
        parts = [size(row.parts.get(name, 0)) for name in _PARTS]
        where = f"{row.phase}{', ' + row.module if row.module and row.phase != 'optimizer' else ''}"
        table.add_row(
            title(row), size(row.peak), *parts, size(row.kept), f"{row.floors:.1f}",
            f"x{row.time_ratio:.2f}", where,
        )  # fmt: skip
    return table


def fits_table(plan: MemoryPlan) -> Table:
    """A line for each way: the largest size that fits, and the one above it."""
    what = (plan.vary or "batch").replace("-", " ")
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    table.add_column(f"in {size(plan.limit or 0)}", no_wrap=True)
    for column in (f"largest {what}", "peak", "does not fit", "its peak", "time a sample"):
        table.add_column(column, justify="right", no_wrap=True)
    for fit in plan.fits:
        largest = "none" if fit.largest is None else str(fit.largest)
        peak = size(fit.peak) if fit.largest is not None else ""
        above = ("", "") if fit.next is None else (str(fit.next), size(fit.peak_of_next or 0))
        table.add_row(title(fit), largest, peak, *above, f"x{fit.time_ratio:.2f}")
    return table


def title(row: Row | Fit) -> str:
    """A way, with its adapters."""
    return row.title if row.lora_rank is None else f"{row.title}, LoRA {row.lora_rank}"
