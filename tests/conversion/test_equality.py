"""After the whole trip, convert and load, a network at (1, 0) computes what its source does, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from revsurgeon.sources import resolve
from revsurgeon.sources.inputs import InputSpec
from tests.gradients import call
from tests.models import NETWORKS, seeded

from .conftest import Run

EVERY_TIME = ("timm resnet", "torchvision swin3d", "transformers bert")
"""The small networks that are not left to the slow tests: convolutions, windows, tokens with a mask."""

FULL_SIZE = {
    "timm:vit_tiny_patch16_224": [],
    "timm:swin_tiny_patch4_window7_224": [],
    "timm:convnext_atto": ["x=2x3x64x64"],
    "timm:resnet50": ["x=2x3x64x64"],
    "timm:davit_tiny": ["x=2x3x64x64"],
    "torchvision:swin3d_t": ["x=2x3x4x64x64"],
    "torchvision:r3d_18": ["x=2x3x4x32x32"],
    "torchvision:vit_b_16": [],
    "transformers:videomae": [],
    "transformers:vit": [],
    "transformers:swin": [],
    "transformers:dinov2": ["pixel_values=2x3x56x56"],
    "transformers:bert": ["input_ids=2x8:int64", "attention_mask=2x8:int64"],
}
"""Networks at the size that their libraries make them, and smaller inputs where they take them."""


def assert_equal_at_1_0(path: Path, original: nn.Module, inputs: InputSpec) -> None:
    """Compare what loads from an artifact with its source, on two batch sizes."""
    loaded = rs.load(path, allow_python=True)
    assert type(loaded) is type(original)
    rs.set_coefficients(loaded, 1.0, 0.0)
    for name, parameter in original.named_parameters():
        if parameter.dim() > 1 and not parameter.any():  # a head that starts at zero would hide everything
            nn.init.normal_(parameter)
            loaded.get_parameter(name).data = parameter.data.clone()
    for size in (1, 3):
        batch = inputs.example(size, seed=size)
        with torch.no_grad():
            assert torch.equal(call(loaded, batch), call(original, batch)), f"batch of {size}"


@pytest.mark.parametrize("name", EVERY_TIME)
def test_a_small_network_comes_back_equal(tmp_path: Path, name: str) -> None:
    convert_small(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in EVERY_TIME])
def test_every_small_network_comes_back_equal(tmp_path: Path, name: str) -> None:
    convert_small(tmp_path, name)


def convert_small(tmp_path: Path, name: str) -> None:
    spec = f"python:tests.models:{NETWORKS[name].__name__}"
    source = resolve(spec)
    path = rs.convert(spec, output=tmp_path / "out", arithmetic="exact")
    assert_equal_at_1_0(path, source.module(), source.inputs)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("transformers")])
def test_a_small_config_alone_is_a_source(revsurgeon: Run, tmp_path: Path, name: str) -> None:
    network: Any
    network, _ = seeded(NETWORKS[name])
    network.config.architectures = [type(network).__name__]
    network.config.save_pretrained(tmp_path / "source")
    result = revsurgeon(
        *("convert", "./source", "--random-weights", "--arithmetic", "exact", "--output", "out", "--json")
    )
    assert result.code == 0, result.err
    source = resolve(str(tmp_path / "source"), random_weights=True)
    assert json.loads(result.out)["manifest"]["build"]["entry"] == type(network).__name__
    assert_equal_at_1_0(tmp_path / "out", source.module(), source.inputs)


def test_the_demo_comes_back_equal_in_both_modes(tmp_path: Path) -> None:
    source = resolve("demo")
    for mode in ("dr2", "re2"):
        assert_equal_at_1_0(rs.convert("demo", mode, output=tmp_path / mode), source.module(), source.inputs)


@pytest.fixture
def all_threads() -> Iterator[None]:
    """Networks of full size are worth more than one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("spec", FULL_SIZE)
def test_the_command_line_inspects_and_converts_a_network_of_full_size(
    revsurgeon: Run, tmp_path: Path, spec: str, all_threads: None
) -> None:
    options = [word for text in FULL_SIZE[spec] for word in ("--input", text)]
    inspected = revsurgeon("inspect", spec, *options, "--json")
    assert inspected.code == 0, inspected.err
    anatomy = json.loads(inspected.out)
    assert anatomy["chains"]
    result = revsurgeon(
        *("convert", spec, "--random-weights", "--arithmetic", "exact", "--output", "out", "--json"), *options
    )
    assert result.code == 0, result.err
    chains = json.loads(result.out)["manifest"]["chains"]
    assert [chain["name"] for chain in chains] == [chain["name"] for chain in anatomy["chains"]]
    source = resolve(spec, random_weights=True)
    assert_equal_at_1_0(tmp_path / "out", source.module(), source.inputs.override(FULL_SIZE[spec]))
