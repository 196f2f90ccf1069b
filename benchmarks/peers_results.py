"""The result file of the comparison: one document a device, written again after every row."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.circumstances import circumstances
from benchmarks.peers_goals import MEASURED, NOT_YET, goals

__all__ = ["LIBRARIES", "MEASURED", "NOT_YET", "Results", "file_of"]
LIBRARIES = ("momentumnet", "memcnn", "revlib", "RevTorch")


def file_of(folder: Path, device: str) -> Path:
    """Where the results of a device are."""
    return folder / ("peers.json" if device == "cpu" else f"peers_{device}.json")


@dataclass
class Results:
    """The rows that were measured on one device.

    Attributes:
        path: of the file.
        document: as it is written.
    """

    path: Path
    document: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, device: str) -> Results:
        """What is there, or nothing yet."""
        path = file_of(folder, device)
        if path.exists():
            return cls(path, json.loads(path.read_text(encoding="utf-8")))
        return cls(path, {"device": device, "rows": [], "goals": []})

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order in which they were measured."""
        rows: list[dict[str, Any]] = self.document["rows"]
        return rows

    def row(self, network: str, way: str) -> dict[str, Any] | None:
        """One row, if it is there."""
        return next((r for r in self.rows if (r["network"], r["row"]) == (network, way)), None)

    def put(self, row: dict[str, Any]) -> None:
        """Add a row, or put it in the place of the one before it; write the file."""
        old = self.row(row["network"], row["row"])
        if old is None:
            self.rows.append(row)
        else:
            self.rows[self.rows.index(old)] = row
        self.write()

    def note_circumstances(self, batch: int) -> None:
        """Say on what the rows are measured from now on."""
        import torch

        found = {**circumstances(), "threads": torch.get_num_threads(), "batch": batch}
        if self.document["device"] == "cuda":
            found["gpu"] = torch.cuda.get_device_name()
        installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
        found["libraries"] = {name: installed.get(name.lower(), "not installed") for name in LIBRARIES}
        rows = self.document.pop("rows"), self.document.pop("goals")
        self.document = {**self.document, **found, "goals": rows[1], "rows": rows[0]}

    def write(self) -> None:
        """Goals, then the file, whole or not at all."""
        self.document["goals"] = goals(self)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staged = self.path.with_suffix(".json.part")
        staged.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        staged.replace(self.path)
