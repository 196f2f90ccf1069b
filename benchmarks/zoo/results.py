"""The file of the sweep: one JSON line a network, written when it is through."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "results" / "zoo.jsonl"
_LIBRARIES = ("torch", "timm", "torchvision", "transformers")


def versions(library: str) -> dict[str, str]:
    """The versions that a row depends on."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES if name in ("torch", library)}


class Results:
    """Rows by network; the last one written counts.

    Args:
        path: of the file; it need not exist.
    """

    def __init__(self, path: Path = FILE) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self.rows[row["key"]] = row

    def is_done(self, key: str, library: str) -> bool:
        """Whether a network was examined with the versions that are installed, and did not fail."""
        row = self.rows.get(key)
        settled = row is not None and row["status"] in ("converted", "left alone")
        return settled and row["versions"] == versions(library)

    def add(self, row: dict[str, Any]) -> None:
        """Write a row."""
        row = {**row, "versions": versions(row["library"]), "date": _today(), "commit": _commit()}
        self.rows[row["key"]] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def tidy(self, keys: Collection[str]) -> None:
        """Write the file anew, one line for each of these networks, in order."""
        self.rows = {key: self.rows[key] for key in sorted(self.rows) if key in keys}
        lines = [json.dumps(row) for row in self.rows.values()]
        self.path.write_text("".join(f"{line}\n" for line in lines))


@functools.cache
def _commit() -> str:
    """What was examined: the commit that is checked out, with a mark if the package was changed since."""
    git = ["git", "-C", str(FILE.parent)]
    found = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True)
    if found.returncode:
        return "unknown"
    package = FILE.parents[2] / "revsurgeon"
    changed = subprocess.run([*git, "status", "--porcelain", "--", package], capture_output=True, text=True)
    return found.stdout.strip() + "+" * bool(changed.stdout.strip())


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
