"""What the files of an artifact are called, as on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "manifest.yaml"
CONFIG = "config.json"
CARD = "README.md"

_OURS = re.compile(
    r"model(-\d{5,}-of-\d{5,})?\.safetensors|" + "|".join(map(re.escape, (INDEX, MANIFEST, CONFIG, CARD)))
)


def shard_name(number: int, count: int) -> str:
    """The name of the shard with this number, from 1."""
    return WEIGHTS if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def foreign_names(directory: Path) -> list[str]:
    """What in a directory an artifact does not have, so that replacing it would lose something.

    Without a manifest everything is foreign: a pretrained checkpoint has the same names otherwise.
    """
    names = sorted(path.name for path in directory.iterdir())
    return [name for name in names if MANIFEST not in names or not _OURS.fullmatch(name)]
