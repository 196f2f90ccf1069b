"""Two small sound artifacts, whole and in shards, which the fuzzer changes."""

from __future__ import annotations

from pathlib import Path

import torch

from revsurgeon.artifact import ChainRecord, Manifest, write_artifact
from revsurgeon.recipes import Coefficients, load_recipe


def write_small(folder: Path) -> tuple[Path, Path]:
    """Write them below a folder; their directories."""
    manifest = Manifest(
        revsurgeon="0.1.0",
        source={"spec": "org/demo@main", "kind": "hub", "repo_id": "org/demo", "files": {"a.bin": "00ff"}},
        build={"library": "timm", "entry": "vit_tiny", "arguments": {"img_size": [32, 32]}},
        inputs={"entries": {"0": {"shape": [1, 3, 32, 32], "dtype": "float32", "kind": "normal"}}},
        recipe=load_recipe("dr2-balanced"),
        chains=[
            ChainRecord(
                name="blocks",
                blocks=["blocks.0", "blocks.1"],
                segments=[2, 2],
                streams=["x", "x"],
                outputs=[0, 0],
                merge="normalized",
                copy_output=False,
            )
        ],
        coefficients=Coefficients(alpha=0.9, beta=0.1),
        arithmetic="exact",
        schedule_state={"step": 3},
        checks={"equality": {"passed": True, "difference": 0.0}},
    )
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5).half(), "c": torch.tensor(7)}
    whole = write_artifact(folder / "whole", tensors, manifest, config=b'{"x": 1}', card="")
    sharded = write_artifact(folder / "sharded", tensors, manifest, config=None, card="", max_shard_size=50)
    return whole, sharded
