"""Artifacts with one thing wrong, made of a converted demo."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
Change = Callable[[dict[str, Any]], object]


def raw_file(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    """Write a safetensors file with any header, and perhaps another length stated."""
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header of a weight file, the manifest in it, and the data."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["revsurgeon"]), raw[8 + length :]


def with_manifest(demo: Path, target: Path, change: Change) -> Path:
    """A copy of an artifact with another manifest in its header, and no manifest.yaml."""
    target.mkdir()
    header, manifest, data = parts(demo / WEIGHTS)
    change(manifest)
    header["__metadata__"]["revsurgeon"] = json.dumps(manifest)
    raw_file(target / WEIGHTS, json.dumps(header).encode(), data)
    shutil.copy(demo / "config.json", target)
    return target


def copy_of(demo: Path, target: Path) -> Path:
    """A copy of an artifact."""
    shutil.copytree(demo, target)
    return target
