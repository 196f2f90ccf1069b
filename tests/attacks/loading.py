"""Whole artifacts with another manifest, for the option --load of the fuzzer: networks are built, too."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import revsurgeon as rs
from tests.attacks.artifacts import WEIGHTS, parts, raw_file
from tests.attacks.fuzz import Targets
from tests.attacks.mutations import changed_structure

ARTIFACT = Path(__file__).parents[1] / "artifact" / "written_by" / "0.1.0" / "whole"
PARTS = ("build", "chains", "coefficients", "recipe", "schedule_state", "inputs", "config")


class Loading(Targets):
    """`load`, fed with manifests whose parts have another structure.

    Args:
        folder: where inputs are written.
    """

    # A network may be large; a chain that does not fit it cannot be rewired.
    seconds, codes = 30, (2, 4)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.header, self.manifest, self.data = parts(ARTIFACT / WEIGHTS)
        torch.set_num_threads(1)
        rs.load(ARTIFACT)  # imports what there is to import

    def all(self) -> dict[str, tuple[int, Callable[[random.Random], bytes], Callable[[bytes], object]]]:
        """There is one kind."""
        return {"load": (1, self.make, self.read)}

    def make(self, chance: random.Random) -> bytes:
        """A manifest in which one part has another structure, also that of config.json in it."""
        part = chance.choice(PARTS)
        changed: Any = changed_structure(
            json.loads(self.manifest["config"]) if part == "config" else self.manifest[part], chance
        )
        if part == "config":
            changed = json.dumps(changed)
        without = {"config": None} if part == "build" else {}  # else config.json wins over it
        return json.dumps({**self.manifest, **without, part: changed}).encode()

    def read(self, raw: bytes) -> object:
        """As a user does."""
        header = {**self.header, "__metadata__": {"format": "pt", "revsurgeon": raw.decode()}}
        return rs.load(raw_file(self.folder / WEIGHTS, json.dumps(header).encode(), self.data))
