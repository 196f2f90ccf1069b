"""Two small sound artifacts, whole and in shards, which the fuzzer changes."""

from __future__ import annotations

from pathlib import Path

import torch

from revsurgeon.artifact import write_artifact
from tests.artifact.small_manifest import small_manifest


def write_small(folder: Path) -> tuple[Path, Path]:
    """Write them below a folder; their directories."""
    manifest = small_manifest(
        inputs={"entries": {"0": {"shape": [1, 3, 32, 32], "dtype": "float32", "kind": "normal"}}},
        schedule_state={"step": 3},
        checks={"equality": {"passed": True, "difference": 0.0}},
    )
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5).half(), "c": torch.tensor(7)}
    whole = write_artifact(folder / "whole", tensors, manifest, config=b'{"x": 1}', card="")
    sharded = write_artifact(folder / "sharded", tensors, manifest, config=None, card="", max_shard_size=50)
    return whole, sharded
