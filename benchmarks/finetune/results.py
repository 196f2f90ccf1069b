"""The files of the runs: one JSON line a run, written when it is through."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.circumstances import circumstances

FOLDER = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
_LIBRARIES = ("revsurgeon", "torch", "timm", "transformers")

Key = tuple[str, int]
"""Arm and seed."""


class Results:
    """The rows of one task by arm and seed; the last one written counts.

    Args:
        task: its name.
        folder: where the file is, or will be.
    """

    def __init__(self, task: str, folder: Path = FOLDER) -> None:
        self.path = folder / f"finetune-{task}.jsonl"
        self.rows: dict[Key, dict[str, Any]] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.rows[row["arm"], row["seed"]] = row

    def is_done(self, arm: str, seed: int, settings: Mapping[str, Any]) -> bool:
        """Whether there is a row with these settings; one that failed is tried again."""
        row = self.rows.get((arm, seed))
        return row is not None and row["settings"] == settings and row["status"] != "failed"

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row, with the date, the processor and the versions."""
        head = circumstances()
        versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
        where = {"date": head["date"], "machine": head["machine"], "versions": versions}
        written = {**row, **where}
        self.rows[written["arm"], written["seed"]] = written
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(written) + "\n")
