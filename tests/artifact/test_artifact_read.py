"""Reading: every way a file can be wrong is an error in words."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revsurgeon.artifact import Manifest, changed_tensors, read_manifest, read_tensors
from revsurgeon.artifact.header import read_header
from revsurgeon.errors import ArtifactError

from .processes import contents

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def everything(path: Path) -> tuple[Manifest, dict[str, torch.Tensor]]:
    manifest = read_manifest(path)
    return manifest, read_tensors(path, manifest)


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        everything(path)
    assert caught.value.exit_code == 2
    assert caught.value.where
    return str(caught.value)


def raw_file(
    path: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, *, dtype: str = "U8", shape: list[Any] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


MALFORMED: dict[str, tuple[bytes | dict[str, Any], bytes, str]] = {
    "overlapping tensors": ({"a": entry(0, 4), "b": entry(2, 6)}, b"x" * 6, "'b' overlaps 'a'"),
    "a gap between tensors": ({"a": entry(0, 2), "b": entry(4, 6)}, b"x" * 6, "'b' leaves a gap after 'a'"),
    "a gap before the first": ({"a": entry(1, 3)}, b"x" * 3, "'a' leaves a gap"),
    "data beyond the end": ({"a": entry(0, 8)}, b"x" * 4, "truncated"),
    "bytes that belong to nobody": ({"a": entry(0, 4)}, b"x" * 9, "too long"),
    "two tensors on the same bytes": ({"a": entry(0, 4), "b": entry(0, 4)}, b"x" * 4, "overlaps"),
    "offsets backwards": (
        {"a": {"dtype": "U8", "shape": [0], "data_offsets": [4, 2]}},
        b"x" * 4,
        "offsets of",
    ),
    "a shape that does not fit": ({"a": entry(0, 4, shape=[5])}, b"x" * 4, "do not fit its shape"),
    "a negative size": ({"a": entry(0, 4, shape=[-4])}, b"x" * 4, "no valid shape"),
    "two negative sizes": ({"a": entry(0, 4, shape=[-2, -2])}, b"x" * 4, "no valid shape"),
    "a fractional size": ({"a": entry(0, 4, shape=[4.0])}, b"x" * 4, "no valid shape"),
    "a truth value as a size": ({"a": entry(0, 1, shape=[True])}, b"x", "no valid shape"),
    "a size beyond 64 bits": ({"a": entry(0, 0, shape=[2**64, 0])}, b"", "no valid shape"),
    "a thousand dimensions": ({"a": entry(0, 1, shape=[1] * 1000)}, b"x", "no valid shape"),
    "no dtype of this world": ({"a": entry(0, 4, dtype="F128")}, b"x" * 4, "unknown dtype 'F128'"),
    "a dtype that is a list": ({"a": {**entry(0, 4), "dtype": ["U8"]}}, b"x" * 4, "unknown dtype"),
    "an entry with a surprise": ({"a": {**entry(0, 4), "file": "/etc/passwd"}}, b"x" * 4, "malformed"),
    "an entry that is a number": ({"a": 3}, b"", "malformed"),
    "metadata that is not text": ({"__metadata__": {"format": 3}}, b"", "metadata is not"),
    "metadata that is a list": ({"__metadata__": ["format"]}, b"", "metadata is not"),
    "a tensor twice": (
        b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 2)).encode(),) * 2),
        b"xx",
        "'a' stands",
    ),
    "a header that is a list": (b"[]", b"", "not a JSON object"),
    "a header that starts with space": (b' {"a": 1}', b"", "not a JSON object"),
    "an empty header": (b"", b"", "not a JSON object"),
    "half a header": (b'{"a": {"dtype"', b"", "cannot be read"),
    "a header that is not UTF-8": (b'{"\xff": 1}', b"", "not UTF-8"),
    "a header of brackets": (b'{"a":' + b"[" * 500_000, b"", "nested too deeply"),
    "a header of empty lists": (b'{"a":[' + b"[]," * 1_000_001 + b"[]]}", b"", "more than 1,000,000"),
    "a number of 10,000 digits": (b'{"a": ' + b"9" * 10_000 + b"}", b"", "cannot be read"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_in_words(tmp_path: Path, case: str) -> None:
    header, data, problem = MALFORMED[case]
    assert problem in refusal(raw_file(tmp_path / WEIGHTS, header, data))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100 << 20])
def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    assert f"claims {length:,} bytes" in refusal(raw_file(tmp_path / WEIGHTS, b"{}", length=length))


@pytest.mark.parametrize("size", [0, 7, 8, 9, 1000])
def test_a_truncated_file_is_refused_in_words(artifact: Path, size: int) -> None:
    os.truncate(artifact / WEIGHTS, size)
    assert "not a sound safetensors file" in refusal(artifact)


def test_a_file_that_lost_its_last_byte_is_refused(artifact: Path) -> None:
    os.truncate(artifact / WEIGHTS, (artifact / WEIGHTS).stat().st_size - 1)
    assert "truncated" in refusal(artifact)


def test_a_single_file_is_enough_under_any_name(artifact: Path, tmp_path: Path) -> None:
    alone = shutil.copy(artifact / WEIGHTS, tmp_path / "ckpt.safetensors")
    whole, single = everything(artifact), everything(Path(alone))
    assert whole[0] == single[0]
    assert changed_tensors(single[1], whole[0]) == []


def test_weights_of_someone_else_are_told_how_to_be_converted(tmp_path: Path) -> None:
    path = raw_file(tmp_path / WEIGHTS, {"a": entry(0, 1)}, b"x")
    assert f"revsurgeon convert {path}" in refusal(path)


@pytest.mark.parametrize("name", ["missing", "missing.safetensors"])
def test_what_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    assert str(tmp_path / name) in refusal(tmp_path / name)


def test_a_pickle_is_not_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"\x80\x04.")
    assert "directory or a .safetensors file" in refusal(tmp_path / "model.pth")


def test_a_directory_without_weights_is_not_an_artifact(tmp_path: Path) -> None:
    assert "has no model.safetensors" in refusal(tmp_path)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / WEIGHTS)
    assert "not a regular file" in refusal(tmp_path)


# Shards and their index


def with_index(directory: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    index = json.loads((directory / INDEX).read_text())
    change(index)
    (directory / INDEX).write_text(json.dumps(index))
    return directory


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../secret.safetensors",
            "/etc/passwd",
            "sub/x.safetensors",
            "..",
            "",
            ".hidden.safetensors",
            "x.bin",
        ),
        *("a\\b.safetensors", "x.safetensors\n", "x.safetensors\0", "C:x.safetensors", "~.safetensors"),
    ],
)
def test_an_index_that_leads_out_of_the_directory_is_refused(sharded: Path, name: str) -> None:
    with_index(sharded, lambda index: index["weight_map"].update({"mask": name}))
    assert "not the name of a file beside it" in refusal(sharded)


@pytest.mark.parametrize("value", [None, 3, ["a"], {}])
def test_an_index_with_something_else_than_names_is_refused(sharded: Path, value: object) -> None:
    with_index(sharded, lambda index: index["weight_map"].update({"mask": value}))
    assert "not the name of a file beside it" in refusal(sharded)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_weight_map_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    assert "no weight map" in refusal(sharded)


def test_an_index_that_says_a_tensor_twice_is_refused(sharded: Path) -> None:
    text = (sharded / INDEX).read_text()
    (sharded / INDEX).write_text(text.replace('"weight_map":{', '"weight_map":{"mask":"x.safetensors",'))
    assert "'mask' stands there twice" in refusal(sharded)


def test_an_index_that_is_wrong_about_a_tensor_is_refused(sharded: Path) -> None:
    def swap(index: dict[str, Any]) -> None:
        names = index["weight_map"]
        names["mask"], names["blocks.0.weight"] = names["blocks.0.weight"], names["mask"]

    assert "index is wrong about" in refusal(with_index(sharded, swap))


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*"))[1]
    shard.unlink()
    assert shard.name in refusal(sharded)


def test_an_index_that_forgets_a_shard_is_refused(sharded: Path) -> None:
    def forget(index: dict[str, Any]) -> None:
        last = max(index["weight_map"].values())
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != last}

    assert "not those of the manifest" in refusal(with_index(sharded, forget))


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    first, second = sorted(sharded.glob("model-*"))[:2]
    shutil.copy(first, second)
    assert "index is wrong about" in refusal(sharded)


def test_shards_of_two_artifacts_do_not_mix(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*"))[1]
    shard.write_bytes(shard.read_bytes().replace(b"org/demo@main", b"org/demo@evil"))
    assert "shards are of different artifacts" in refusal(sharded)


def test_one_shard_alone_is_told_to_be_one_of_several(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*"))[0]
    assert "one of" in refusal(shard)
    assert "Give their directory" in refusal(shard)


def test_a_whole_file_beside_an_index_is_ambiguous(sharded: Path, artifact: Path) -> None:
    shutil.copy(artifact / WEIGHTS, sharded)
    assert "both a model.safetensors and a model.safetensors.index.json" in refusal(sharded)


# Links


def test_a_link_that_leads_out_of_the_artifact_is_refused(artifact: Path, tmp_path: Path) -> None:
    (artifact / WEIGHTS).rename(tmp_path / "elsewhere.safetensors")
    (artifact / WEIGHTS).symlink_to(tmp_path / "elsewhere.safetensors")
    assert "leads out of the artifact" in refusal(artifact)


def test_a_link_to_nothing_and_a_link_to_itself_are_refused(artifact: Path) -> None:
    (artifact / WEIGHTS).unlink()
    (artifact / WEIGHTS).symlink_to("nothing")
    assert "is missing" in refusal(artifact)
    (artifact / WEIGHTS).unlink()
    (artifact / WEIGHTS).symlink_to(WEIGHTS)
    assert "is missing" in refusal(artifact)


def test_the_links_of_the_hubs_cache_are_followed(artifact: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(artifact.iterdir()):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert everything(snapshot)[0] == everything(artifact)[0]


def test_an_artifact_may_itself_be_reached_through_a_link(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(artifact)
    (tmp_path / "file.safetensors").symlink_to(artifact / WEIGHTS)
    assert everything(tmp_path / "link")[0] == everything(tmp_path / "file.safetensors")[0]


# The manifest against the weights


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change a file's header and the manifest in it, and leave the data as it is."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["revsurgeon"])
    change(header, manifest)
    header["__metadata__"]["revsurgeon"] = json.dumps(manifest)
    raw_file(path, header, raw[8 + length :])


def renamed(header: dict[str, Any], manifest: dict[str, Any]) -> None:
    header["musk"] = header.pop("mask")


def retyped(header: dict[str, Any], manifest: dict[str, Any]) -> None:
    header["mask"]["dtype"] = "I8"


def reshaped(header: dict[str, Any], manifest: dict[str, Any]) -> None:
    manifest["tensors"]["mask"]["shape"] = [3, 1]


def promised(header: dict[str, Any], manifest: dict[str, Any]) -> None:
    manifest["tensors"]["more"] = manifest["tensors"]["mask"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (renamed, "no such tensor"),
        (retyped, "'mask' is I8 [3], the manifest has BOOL [3]"),
        (reshaped, "'mask' is BOOL [3], the manifest has BOOL [3, 1]"),
        (promised, "1 tensors of the manifest are missing, 'more' among them"),
        (lambda header, manifest: header["__metadata__"].pop("format"), "not said to be PyTorch's"),
        (lambda header, manifest: manifest.update(format_version=9), "format is 9"),
        (lambda header, manifest: manifest.pop("recipe"), "recipe: Field required"),
    ],
)
def test_a_manifest_that_disagrees_with_the_weights_is_refused(
    artifact: Path, change: Callable[[dict[str, Any], dict[str, Any]], object], problem: str
) -> None:
    rewritten(artifact / WEIGHTS, change)
    assert problem in refusal(artifact / WEIGHTS)


@pytest.mark.parametrize("new", ["alpha: 0.8", "alpha: 0.9000000000000001"])
def test_a_manifest_yaml_that_disagrees_with_the_header_is_refused(artifact: Path, new: str) -> None:
    text = (artifact / "manifest.yaml").read_text()
    (artifact / "manifest.yaml").write_text(text.replace("alpha: 0.9", new))
    assert "The manifest and the weights disagree" in refusal(artifact)


def test_a_manifest_yaml_may_be_written_in_another_way_or_be_missing(artifact: Path) -> None:
    path = artifact / "manifest.yaml"
    path.write_text("# a note\n" + path.read_text().replace("alpha: 0.9", "alpha:   9.0e-1"))
    manifest, _ = everything(artifact)
    path.unlink()
    assert everything(artifact)[0] == manifest


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"a: &a [x]\nb: *a\n", "anchors and aliases"),
        (b"- a\n", "not a mapping"),
        (b"", "not a mapping"),
        (b"x: 1\n" * 3_000_000, "stands there twice"),
    ],
)
def test_a_manifest_yaml_that_is_none_is_refused_in_words(artifact: Path, raw: bytes, problem: str) -> None:
    (artifact / "manifest.yaml").write_bytes(raw)
    assert problem in refusal(artifact)


def test_a_change_of_one_bit_in_the_weights_is_found_by_the_hashes(artifact: Path) -> None:
    path = artifact / WEIGHTS
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    manifest, tensors = everything(artifact)
    assert len(changed_tensors(tensors, manifest)) == 1


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_change_of_one_byte_goes_unnoticed(artifact: Path, data: st.DataObject) -> None:
    whole = contents(artifact)
    original = everything(artifact)
    raw = bytearray(whole[WEIGHTS])
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[at]))
    (artifact / WEIGHTS).write_bytes(raw)
    try:
        manifest, tensors = everything(artifact)
    except ArtifactError:
        noticed = True
    else:
        noticed = bool(changed_tensors(tensors, manifest))
        harmless = manifest == original[0] and tensors.keys() == original[1].keys()  # a space became a tab
        assert noticed or harmless
    (artifact / WEIGHTS).write_bytes(whole[WEIGHTS])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(junk=st.binary(max_size=200), size=st.integers(0, 300))
def test_any_bytes_are_read_or_refused_in_words(tmp_path: Path, junk: bytes, size: int) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(size.to_bytes(8, "little") + b'{"a":' + junk)
    with pytest.raises(ArtifactError):
        read_header(path)
