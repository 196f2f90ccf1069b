"""The weights of an artifact are the source's own, byte for byte, so that its library loads them as ever."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import revsurgeon as rs
from revsurgeon.sources import resolve
from tests import models
from tests.artifact.processes import contents
from tests.models import seeded

from .conftest import Run

TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64", "I64": "int64"}


def raw_tensors(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of every tensor of a safetensors file, read by hand."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    body = memoryview(data)[8 + size :]
    return {
        name: (TORCH_NAMES[entry["dtype"]], entry["shape"], bytes(body[slice(*entry["data_offsets"])]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def as_raw(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, list[int], bytes]]:
    """The same of tensors in memory."""
    return {
        name: (
            str(tensor.dtype).removeprefix("torch."),
            list(tensor.shape),
            tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes(),
        )
        for name, tensor in state.items()
    }


@pytest.fixture
def source(request: pytest.FixtureRequest) -> str:
    """A source by a name of this file: a fixture's directory, or a spec."""
    name: str = request.param
    return name if ":" in name or name == "demo" else str(request.getfixturevalue(name))


SOURCES = [
    *("demo", "videomae", "masked_lm"),
    pytest.param("python:tests.models:torchvision_r3d", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("source", SOURCES, indirect=True)
def test_names_dtypes_and_bytes_are_those_of_the_sources_state_dict(tmp_path: Path, source: str) -> None:
    original = as_raw(resolve(source).module().state_dict())
    path = rs.convert(source, output=tmp_path / "out", arithmetic="exact")
    written = raw_tensors(path / "model.safetensors")
    assert written.keys() == original.keys()
    assert [name for name in original if written[name] != original[name]] == []


def test_the_sources_files_are_in_the_artifact(tmp_path: Path, masked_lm: Path) -> None:
    path = rs.convert(str(masked_lm), output=tmp_path / "out", arithmetic="exact")
    written, file = (raw_tensors(place / "model.safetensors") for place in (path, masked_lm))
    assert [name for name in file if written[name] != file[name]] == []
    assert (path / "config.json").read_bytes() == (masked_lm / "config.json").read_bytes()


def test_the_plain_timm_network_loads_them_strictly(tmp_path: Path) -> None:
    import timm

    path = rs.convert("demo", output=tmp_path / "out")
    config = json.loads((path / "config.json").read_text())
    plain = timm.create_model(config["architecture"], num_classes=10, **config["model_args"])
    plain.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), resolve("demo").module()(images))


@pytest.mark.parametrize("source", ["videomae", "masked_lm"], indirect=True)
def test_the_plain_transformers_network_loads_them_strictly(tmp_path: Path, source: str) -> None:
    found = resolve(source)
    original = found.module()
    path = rs.convert(source, output=tmp_path / "out", arithmetic="exact")
    plain = type(original)(type(original).config_class.from_pretrained(path)).eval()
    plain.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    by_its_own_loader = type(original).from_pretrained(path).eval()
    with torch.no_grad():
        for network in (plain, by_its_own_loader):
            expected = original(**found.inputs.example()).logits
            assert torch.equal(network(**found.inputs.example()).logits, expected)


@pytest.mark.slow
def test_the_plain_torchvision_network_loads_them_strictly(tmp_path: Path) -> None:
    path = rs.convert("python:tests.models:torchvision_r3d", output=tmp_path / "out", arithmetic="exact")
    plain, inputs = seeded(models.torchvision_r3d)
    nn.init.zeros_(plain.fc.weight)
    plain.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    original = resolve("python:tests.models:torchvision_r3d").module()
    with torch.no_grad():
        assert torch.equal(plain.eval()(*inputs), original(*inputs))


@pytest.mark.parametrize(
    ("dtype", "source"),
    [("bfloat16", "demo"), ("float16", "videomae"), ("float64", "masked_lm")],
    indirect=["source"],
)
def test_a_dtype_casts_every_floating_weight_and_nothing_else(
    tmp_path: Path, dtype: str, source: str
) -> None:
    found = resolve(source)
    cast = found.module().to(getattr(torch, dtype))
    path = rs.convert(source, output=tmp_path / "out", dtype=dtype, arithmetic="exact")
    assert raw_tensors(path / "model.safetensors") == as_raw(cast.state_dict())
    loaded = rs.load(path)
    rs.set_coefficients(loaded, 1.0, 0.0)
    inputs = found.inputs.with_float_dtype(dtype).example()
    with torch.no_grad():
        outputs = [
            network(**inputs).logits if isinstance(inputs, dict) else network(*inputs)
            for network in (loaded, cast)
        ]
    assert torch.equal(*outputs)


def test_buffers_that_no_file_holds_follow_the_weights_to_their_dtype(tmp_path: Path) -> None:
    """Swin v2 computes with a table of coordinates that it keeps out of its state dict."""
    spec = "python:tests.conversion.factories:timm_swin_v2"
    found = resolve(spec)
    cast = found.module().to(torch.bfloat16)
    path = rs.convert(spec, output=tmp_path / "out", dtype="bfloat16", arithmetic="exact")
    loaded = rs.load(path, allow_python=True)
    rs.set_coefficients(loaded, 1.0, 0.0)
    inputs = found.inputs.with_float_dtype("bfloat16").example()
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), cast(*inputs))


@pytest.mark.parametrize("source", ["demo", pytest.param("masked_lm", marks=pytest.mark.slow)], indirect=True)
def test_shards_hold_the_same_tensors_and_load_back(tmp_path: Path, source: str) -> None:
    whole = rs.convert(source, output=tmp_path / "whole", arithmetic="exact")
    sharded = rs.convert(source, output=tmp_path / "sharded", arithmetic="exact", max_shard_size="20KB")
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    parts = [raw_tensors(shard) for shard in shards]
    together = {name: entry for part in parts for name, entry in part.items()}
    assert together == raw_tensors(whole / "model.safetensors")
    assert sum(map(len, parts)) == len(together) == len(index["weight_map"])
    for part in parts:
        assert len(part) == 1 or sum(len(entry[2]) for entry in part.values()) <= 20_000
    first, second = rs.load(whole).state_dict(), rs.load(sharded).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_transformers_itself_reads_the_shards(tmp_path: Path, videomae: Path) -> None:
    from transformers import VideoMAEForVideoClassification

    path = rs.convert(str(videomae), output=tmp_path / "out", arithmetic="exact", max_shard_size="50KB")
    state = VideoMAEForVideoClassification.from_pretrained(path).state_dict()
    original = resolve(str(videomae)).module().state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in original.items())


def test_tied_weights_stay_tied(tmp_path: Path, masked_lm: Path) -> None:
    path = rs.convert(str(masked_lm), output=tmp_path / "out", arithmetic="exact")
    model: Any = rs.load(path)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.add_(1)
    again: Any = rs.load(rs.save(model, tmp_path / "saved"))
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    assert torch.equal(again.cls.predictions.decoder.weight, model.cls.predictions.decoder.weight)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("demo", {"max_shard_size": "20KB"}),
        pytest.param("demo", {}, marks=pytest.mark.slow),
        pytest.param("masked_lm", {"dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
    indirect=["source"],
)
def test_a_second_run_writes_the_same_bytes_from_another_directory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, options: dict[str, Any]
) -> None:
    first = contents(rs.convert(source, output="out", **options))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    torch.manual_seed(1)
    second = contents(rs.convert(source, output=elsewhere / "out", **options))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_random_weights_are_the_same_at_every_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"random_weights": True, "arithmetic": "float", "inputs": ["x=2x3x32x32"]}
    torch.manual_seed(1)
    first = contents(rs.convert("timm:resnet10t", output="one/out", **options))
    torch.manual_seed(2)
    assert contents(rs.convert("timm:resnet10t", output="two/out", **options)) == first


def test_a_relative_source_gives_the_same_bytes_as_an_absolute_one_but_for_its_own_name(
    tmp_path: Path, videomae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absolute = rs.convert(str(videomae), output=tmp_path / "out", arithmetic="exact")
    monkeypatch.chdir(videomae.parent)
    relative = rs.convert("./videomae-small", output=tmp_path / "again" / "out", arithmetic="exact")
    first, second = raw_tensors(absolute / "model.safetensors"), raw_tensors(relative / "model.safetensors")
    assert first == second


def test_the_default_output_is_the_sources_name_and_the_mode(revsurgeon: Run, videomae: Path) -> None:
    result = revsurgeon("convert", str(videomae), "--mode", "re2", "--quiet")
    assert (result.code, result.out) == (0, "videomae-small-re2\n")
    assert os.listdir() == ["videomae-small-re2"]
