"""How measured rows look on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from revsurgeon.memory.quantity import size

if TYPE_CHECKING:
    from revsurgeon.memory.report import BenchReport, BenchRow, Change


def heading(report: BenchReport) -> str:
    """What was measured and on what, in one line."""
    device, settings = report.surroundings["device"], report.settings
    words = [report.name, device["name"], f"{report.surroundings['threads']} threads"]
    words += [str(settings["optimizer"]), f"amp {settings['amp']}", f"median of {settings['steps']} steps"]
    return ", ".join(words)


def rows_table(report: BenchReport) -> Table:
    """A line for each way and size."""
    device = ["reserved"] if any(row.reserved for row in report.rows) else []  # nothing is on a CPU
    table = _table("peak", "planned", "kept", *device, "step", "samples a s", "time", "gradient error")
    for row in report.rows:
        if row.status != "measured":
            predicted = "" if row.predicted_peak is None else size(row.predicted_peak)
            table.add_row(label(row, report), row.status, predicted)
            continue
        table.add_row(
            label(row, report),
            _bytes(row.peak),
            _bytes(row.predicted_peak),
            _bytes(row.kept),
            *([_bytes(row.reserved)] if device else []),
            f"{row.seconds:.3g} s",
            f"{row.samples_per_second:.3g}",
            "" if row.time_ratio is None else f"x{row.time_ratio:.2f}",
            "0" if row.error == 0.0 else f"{row.error:.0e}",
        )
    return table


def changes_table(changes: Sequence[Change]) -> Table:
    """What became of the rows of an earlier report."""
    table = _table("peak", "step time")
    for change in changes:
        table.add_row(
            f"{change.row.title}, {_sizes(change.row)}", _percent(change.peak), _percent(change.seconds)
        )
    return table


def label(row: BenchRow, report: BenchReport) -> str:
    """A way, with its size where there are several."""
    words = row.strategy if row.lora_rank is None else f"{row.strategy}, LoRA {row.lora_rank}"
    return f"{words}, {_sizes(row)}" if len({_sizes(r) for r in report.rows}) > 1 else words


def _sizes(row: BenchRow) -> str:
    named = (("batch", "batch"), ("frames", "frames"), ("image_size", "image size"), ("depth", "depth"))
    return ", ".join(f"{words} {row.sizes[name]}" for name, words in named if row.sizes.get(name))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    table.add_column("way to train", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _bytes(number: int | None) -> str:
    return "" if number is None else size(number)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:+.1%}"
