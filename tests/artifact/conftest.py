"""A small artifact to write, with every kind of tensor that needs care."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from revsurgeon.artifact import Manifest, write_artifact

from .small_manifest import small_manifest

CONFIG = b'{"architectures": ["Demo"],\r\n "eps": 1e-06}'


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return small_manifest(
        build={"library": "timm", "entry": "vit_tiny", "arguments": {"img_size": (32, 32), "eps": 1e-6}},
        inputs={"0": {"shape": [1, 3, 32, 32], "dtype": "float32", "kind": "pixels"}},
        checks={"equality": {"passed": True, "largest difference": 0.0}, "batch sizes": 2},
    )


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 6, generator=generator)
    return {
        "blocks.0.weight": torch.randn(16, 8, generator=generator),
        "blocks.0.bias": torch.randn(16, generator=generator).half(),
        "blocks.1.weight": shared,
        "tied.weight": shared,
        "turned": shared.t(),
        "every other": torch.arange(10)[::2],
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False, True]),
    }


@pytest.fixture
def artifact(tmp_path: Path, tensors: dict[str, torch.Tensor], manifest: Manifest) -> Path:
    return write_artifact(tmp_path / "whole", tensors, manifest, config=CONFIG, card="card\n")


@pytest.fixture
def sharded(tmp_path: Path, tensors: dict[str, torch.Tensor], manifest: Manifest) -> Path:
    output = tmp_path / "sharded"
    return write_artifact(output, tensors, manifest, config=CONFIG, card="", max_shard_size=200)
