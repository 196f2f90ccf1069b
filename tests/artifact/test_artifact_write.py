"""Writing: the tensors as they are, the same bytes every time, one tensor in memory."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from revsurgeon.artifact import Manifest, changed_tensors, read_manifest, read_tensors, write_artifact
from revsurgeon.errors import ArtifactError, UsageError

from .conftest import CONFIG
from .processes import contents, exit_code, fork

Tensors = dict[str, torch.Tensor]

DTYPES = [
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
    *(f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")),
]


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and bits, NaN and negative zero included."""
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def written(output: Path, tensors: Mapping[str, torch.Tensor], manifest: Manifest, **options: object) -> Path:
    return write_artifact(output, tensors, manifest, config=CONFIG, card="card\n", **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, manifest: Manifest, dtype: str) -> None:
    numbers = (
        torch.tensor([[0.0, 1.0], [-2.0, 0.5]]).abs() if "e8m0" in dtype else torch.tensor([[0.0, 1, -2]])
    )
    tensors = {"a": numbers.to(getattr(torch, dtype)), "b": torch.ones(1, dtype=torch.uint8)}
    output = written(tmp_path / "out", tensors, manifest)
    again = read_tensors(output, read_manifest(output))
    assert all(same(again[name], tensors[name]) for name in tensors)


def test_scalars_empty_shared_and_turned_tensors_come_back_as_they_are(
    artifact: Path, tensors: Tensors
) -> None:
    again = read_tensors(artifact, read_manifest(artifact))
    assert again.keys() == tensors.keys()
    assert [name for name in tensors if not same(again[name], tensors[name])] == []


def test_shards_hold_the_same_tensors(sharded: Path, tensors: Tensors) -> None:
    manifest = read_manifest(sharded)
    again = read_tensors(sharded, manifest)
    assert len(manifest.files) > 2
    assert [name for name in tensors if not same(again[name], tensors[name])] == []


def test_other_libraries_read_the_files(artifact: Path, sharded: Path, tensors: Tensors) -> None:
    assert all(same(t, tensors[name]) for name, t in load_file(artifact / "model.safetensors").items())
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert same(load_file(sharded / file)[name], tensors[name])
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())


def test_a_shard_is_no_larger_than_asked_unless_one_tensor_is(sharded: Path, tensors: Tensors) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        held = [tensors[name] for name, shard in index["weight_map"].items() if shard == file]
        assert len(held) == 1 or sum(t.numel() * t.element_size() for t in held) <= 200


def test_every_tensor_is_aligned_to_its_element(artifact: Path) -> None:
    raw = (artifact / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    sizes = {"F32": 4, "F16": 2, "I64": 8, "BOOL": 1}
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in entries)


def test_tied_weights_load_strictly(tmp_path: Path, manifest: Manifest) -> None:
    def network() -> torch.nn.Module:
        layers = torch.nn.ModuleDict(
            {"embed": torch.nn.Embedding(7, 3), "head": torch.nn.Linear(3, 7, bias=False)}
        )
        layers["head"].weight = layers["embed"].weight
        return layers

    output = written(tmp_path / "out", network().state_dict(), manifest)
    assert network().load_state_dict(load_file(output / "model.safetensors"), strict=True)


def test_a_second_run_writes_the_same_bytes_wherever_and_in_whatever_order(
    tmp_path: Path, tensors: Tensors, manifest: Manifest
) -> None:
    backwards = dict(reversed(tensors.items()))
    for size in ("5GB", 200):
        one = written(tmp_path / f"one-{size}", tensors, manifest, max_shard_size=size)
        other = written(tmp_path / "deeper" / f"two-{size}", backwards, manifest, max_shard_size=size)
        assert contents(one) == contents(other)
        assert not any(str(tmp_path).encode() in data for data in contents(one).values())


def test_what_was_read_can_be_written_again_to_the_same_bytes(tmp_path: Path, sharded: Path) -> None:
    manifest = read_manifest(sharded)
    again = tmp_path / "again"
    write_artifact(
        again, read_tensors(sharded, manifest), manifest, config=CONFIG, card="", max_shard_size=200
    )
    assert contents(again) == contents(sharded)


def test_an_artifact_can_be_replaced_by_its_own_mapped_tensors(artifact: Path, tensors: Tensors) -> None:
    manifest = read_manifest(artifact)
    mapped = read_tensors(artifact, manifest)
    before = contents(artifact)
    written(artifact, mapped, manifest, force=True)
    assert contents(artifact) == before
    assert all(same(mapped[name], tensors[name]) for name in tensors)


def test_the_config_is_the_sources_byte_for_byte_and_in_the_single_file_too(artifact: Path) -> None:
    assert (artifact / "config.json").read_bytes() == CONFIG
    assert read_manifest(artifact / "model.safetensors").config == CONFIG.decode()


def test_without_a_config_one_is_made_from_how_the_network_is_built(
    tmp_path: Path, tensors: Tensors, manifest: Manifest
) -> None:
    output = write_artifact(tmp_path / "out", tensors, manifest, config=None, card="")
    assert json.loads((output / "config.json").read_text()) == manifest.build
    assert read_manifest(output).config is None


def test_the_manifest_has_the_hash_of_every_tensor(artifact: Path, tensors: Tensors) -> None:
    manifest = read_manifest(artifact)
    assert changed_tensors(tensors, manifest) == []
    changed = tensors | {"mask": ~tensors["mask"]}
    del changed["steps"]
    assert sorted(changed_tensors(changed, manifest)) == ["mask", "steps"]


def test_a_change_to_a_tensor_that_was_read_is_not_written_back(artifact: Path) -> None:
    before = contents(artifact)
    tensors = read_tensors(artifact, read_manifest(artifact))
    tensors["blocks.0.weight"].add_(1)
    assert contents(artifact) == before


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("a", torch.zeros(2, device="meta"), "no data"),
        ("a", torch.eye(3).to_sparse(), "sparse"),
        ("a", torch.zeros(2, dtype=torch.complex128), "complex128"),
        ("__metadata__", torch.zeros(2), "cannot be stored"),
        ("a\nb", torch.zeros(2), "cannot be stored"),
        ("a\ud800", torch.zeros(2), "cannot be stored"),
    ],
)
def test_a_tensor_that_the_format_cannot_hold_is_named_and_nothing_is_left(
    tmp_path: Path, manifest: Manifest, name: str, tensor: torch.Tensor, problem: str
) -> None:
    with pytest.raises(ArtifactError, match=problem):
        written(tmp_path / "out", {"fine": torch.zeros(1), name: tensor}, manifest)
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_is_not_text_is_refused(tmp_path: Path, tensors: Tensors, manifest: Manifest) -> None:
    with pytest.raises(ArtifactError, match="UTF-8"):
        write_artifact(tmp_path / "out", tensors, manifest, config=b"\xff", card="")


@pytest.mark.parametrize(("size", "shards"), [("100B", 9), ("0.1kb", 9), (100, 9), ("1 KiB", 1), ("5GB", 1)])
def test_a_shard_size_may_have_a_unit(
    tmp_path: Path, manifest: Manifest, size: int | str, shards: int
) -> None:
    tensors = {str(i): torch.zeros(25) for i in range(9)}
    output = written(tmp_path / "out", tensors, manifest, max_shard_size=size)
    assert len(read_manifest(output).files) == shards


@pytest.mark.parametrize("size", ["", "big", "5XB", "-1", 0, "0GB", "1e3", "1..5GB"])
def test_a_size_that_is_none_is_a_usage_error(
    tmp_path: Path, tensors: Tensors, manifest: Manifest, size: int | str
) -> None:
    with pytest.raises(UsageError, match="not a size"):
        written(tmp_path / "out", tensors, manifest, max_shard_size=size)


@pytest.mark.parametrize(("turned", "allowed"), [(False, 2), (True, 10)])
def test_writing_needs_the_memory_of_few_tensors_however_many_there_are(
    tmp_path: Path, manifest: Manifest, turned: bool, allowed: int
) -> None:
    # Tensors that lie in memory row by row are not copied. Turned ones are, one at a time, and the C
    # allocator keeps some of those copies' room.
    plain = {f"{number:03}": torch.ones(1 << 10, 1 << 9) for number in range(80)}
    tensors = {name: tensor.t() for name, tensor in plain.items()} if turned else plain
    size = 2 << 20
    unit = 1 if sys.platform == "darwin" else 1024

    def body() -> None:
        written(tmp_path / "first", {"a": tensors["000"]}, manifest)  # what is used once and for all
        before = psutil.Process().memory_info().rss
        written(tmp_path / "out", tensors, manifest)
        extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
        assert extra < allowed * size, f"{extra / size:.1f} tensors more, of {len(tensors)}"

    assert exit_code(fork(body)) == 0
