"""What `revsurgeon bench` measured, as data; and two such reports side by side. No torch needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from revsurgeon.errors import UsageError


@dataclass(frozen=True)
class BenchRow:
    """One way to train at one size.

    Attributes:
        strategy, title, lora_rank: as in `MemoryPlan`.
        sizes: batch, frames, image_size, depth and the inputs' shapes.
        status: "measured" or "does not fit".
        reason: why it does not fit.
        peak, reserved, kept, states: bytes; see `Measured`.
        seconds: median of a step; all_seconds: of each.
        samples_per_second: at that time.
        time_ratio: to stored activations.
        error: of the gradients.
        predicted_peak, predicted_kept: what `revsurgeon memory` says; predicted_seconds: by its roofline.
    """

    strategy: str
    title: str
    lora_rank: int | None
    sizes: Mapping[str, Any]
    status: str
    reason: str | None = None
    peak: int | None = None
    reserved: int | None = None
    kept: int | None = None
    states: int | None = None
    seconds: float | None = None
    all_seconds: tuple[float, ...] = ()
    samples_per_second: float | None = None
    time_ratio: float | None = None
    error: float | None = None
    predicted_peak: int | None = None
    predicted_kept: int | None = None
    predicted_seconds: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others in a report."""
        return self.strategy, self.lora_rank, json.dumps(self.sizes, sort_keys=True)


@dataclass(frozen=True)
class Change:
    """A row beside the same one of an earlier report: new by old, minus one."""

    row: BenchRow
    peak: float | None
    seconds: float | None


@dataclass(frozen=True)
class BenchReport:
    """All rows, and what they were measured on."""

    name: str
    surroundings: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: tuple[BenchRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it."""
        return {
            "name": self.name,
            "surroundings": dict(self.surroundings),
            "settings": dict(self.settings),
            "rows": [{**asdict(row), "all_seconds": list(row.all_seconds)} for row in self.rows],
        }

    def compared(self, earlier: BenchReport) -> tuple[list[Change], list[str]]:
        """The rows that both have, and what else differs, in words."""
        before = {row.key: row for row in earlier.rows}
        changes = [
            Change(row, _change(row.peak, old.peak), _change(row.seconds, old.seconds))
            for row in self.rows
            if (old := before.get(row.key)) is not None
        ]
        differs = [
            f"{what}: {earlier.surroundings.get(what)} then, {self.surroundings.get(what)} now"
            for what in ("device", "threads", "versions")
            if earlier.surroundings.get(what) != self.surroundings.get(what)
        ]
        differs += [
            f"{what}: {earlier.settings.get(what)} then, {self.settings.get(what)} now"
            for what in self.settings
            if earlier.settings.get(what) != self.settings.get(what)
        ]
        return changes, differs


def _change(new: float | None, old: float | None) -> float | None:
    return None if new is None or not old else new / old - 1.0


def read_report(path: Path) -> BenchReport:
    """A report that `revsurgeon bench --json` or `--output` wrote.

    Raises:
        UsageError: it is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(BenchRow(**{**row, "all_seconds": tuple(row["all_seconds"])}) for row in data["rows"])
        return BenchReport(data["name"], data["surroundings"], data["settings"], rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "the file to compare with is no result of `revsurgeon bench`.", where=f"{path}: {error}"
        ) from error
