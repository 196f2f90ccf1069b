"""Weight files that lie about themselves, as the source of a conversion and as an artifact."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import revsurgeon as rs
from tests.artifact.test_artifact_read import MALFORMED
from tests.attacks.artifacts import WEIGHTS, raw_file
from tests.attacks.sealed import assert_refused, command

DEMO = Path(rs.__file__).parent / "sources" / "demo"


def lengths(begin: int, end: int, shape: list[int]) -> bytes:
    return json.dumps({"a": {"dtype": "U8", "shape": shape, "data_offsets": [begin, end]}}).encode()


HEADERS: dict[str, tuple[bytes, bytes, int | None]] = {
    name: (header if isinstance(header, bytes) else json.dumps(header).encode(), data, None)
    for name, (header, data, _) in MALFORMED.items()
    if name != "a fractional size"  # safetensors itself takes 4.0 for no size, as it should
} | {
    "a length of 2^63": (b"{}", b"", 2**63),
    "a length of 2^64 - 1": (b"{}", b"", 2**64 - 1),
    "a length of 100 GB": (b"{}", b"", 100 << 30),
    "offsets near 2^63": (lengths(2**63 - 8, 2**63 - 4, [4]), b"xxxx", None),
    "offsets beyond 2^64": (lengths(2**64, 2**64 + 4, [4]), b"xxxx", None),
    "a tensor of 2^62 bytes": (lengths(0, 2**62, [2**31, 2**31]), b"", None),
    "sizes whose product wraps around": (lengths(0, 4, [2**32, 2**32, 4]), b"xxxx", None),
    "negative offsets": (lengths(-4, 0, [4]), b"xxxx", None),
    "bytes after an end that is not UTF-8": (b'{"a\xc3\x28": 1}', b"", None),
    "a name with a surrogate": (b'{"\\ud800": 1}', b"", None),
    "nothing": (b"", b"", 0),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with the demo's config.json, for weights to be put into."""
    directory = tmp_path / "source"
    directory.mkdir()
    shutil.copy(DEMO / "config.json", directory)
    return directory


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies_is_no_source_and_no_artifact(source: Path, tmp_path: Path, case: str) -> None:
    header, data, length = HEADERS[case]
    raw_file(source / WEIGHTS, header, data, length)
    output = tmp_path / "output"
    assert_refused(lambda: rs.convert(str(source), output=output), lambda: rs.load(source))
    assert not output.exists()


@pytest.mark.parametrize("case", ["overlapping tensors", "a length of 2^63", "offsets near 2^63"])
def test_the_command_line_says_so_too(source: Path, tmp_path: Path, case: str) -> None:
    header, data, length = HEADERS[case]
    raw_file(source / WEIGHTS, header, data, length)
    commands = [command(name, str(source)) for name in ("errmap", "memory", "bench")]
    commands += [
        command("convert", str(source), "--output", str(tmp_path / "out")),
        command("push", str(source), "someone/there"),
    ]
    for text in assert_refused(*commands):
        assert "Error: " in text


def absolute(index: dict[str, str], directory: Path) -> None:
    index["evil"] = str(directory / "outside.safetensors")


def upwards(index: dict[str, str], directory: Path) -> None:
    index["evil"] = "../outside.safetensors"


def linked(index: dict[str, str], directory: Path) -> None:
    (directory / "source" / "model-00009-of-00009.safetensors").symlink_to(directory / "outside.safetensors")
    index["evil"] = "model-00009-of-00009.safetensors"


def linked_folder(index: dict[str, str], directory: Path) -> None:
    (directory / "source" / "folder").symlink_to(directory)
    index["evil"] = "folder/outside.safetensors"


def missing(index: dict[str, str], directory: Path) -> None:
    index["evil"] = "model-00007-of-00009.safetensors"


def twice(index: dict[str, str], directory: Path) -> None:
    shutil.copy(DEMO / WEIGHTS, directory / "source" / "more.safetensors")
    index["head.bias"] = "more.safetensors"


def pipe(index: dict[str, str], directory: Path) -> None:
    os.mkfifo(directory / "source" / "pipe.safetensors")
    index["evil"] = "pipe.safetensors"


def itself(index: dict[str, str], directory: Path) -> None:
    (directory / "source" / "round.safetensors").symlink_to("round.safetensors")
    index["evil"] = "round.safetensors"


def of_windows(index: dict[str, str], directory: Path) -> None:
    index["evil"] = "..\\outside.safetensors"


@pytest.mark.parametrize(
    "attack", [absolute, upwards, linked, linked_folder, missing, twice, pipe, itself, of_windows]
)
def test_an_index_cannot_lead_elsewhere(
    source: Path, tmp_path: Path, attack: Callable[[dict[str, str], Path], None]
) -> None:
    shutil.copy(DEMO / WEIGHTS, tmp_path / "outside.safetensors")
    shutil.copy(DEMO / WEIGHTS, source / "model-00001-of-00002.safetensors")
    raw = (DEMO / WEIGHTS).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    weight_map = {name: "model-00001-of-00002.safetensors" for name in header if name != "__metadata__"}
    attack(weight_map, tmp_path)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_refused(lambda: rs.convert(str(source), output=tmp_path / "out"), lambda: rs.load(source))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "weights.pt"])
@pytest.mark.parametrize("leave", [False, True])
def test_a_pickle_that_executes_does_not(
    source: Path, tmp_path: Path, evil_pickle: bytes, proof: Path, name: str, leave: bool
) -> None:
    (source / name).write_bytes(evil_pickle)
    assert_refused(
        lambda: rs.convert(str(source), output=tmp_path / "out", allow_pickle=leave), lambda: rs.load(source)
    )
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_real_inputs_that_execute_do_not(
    demo: Path, tmp_path: Path, evil_pickle: bytes, proof: Path, suffix: str
) -> None:
    file = tmp_path / f"batch{suffix}"
    file.write_bytes(evil_pickle)
    assert_refused(lambda: rs.convert("demo", output=tmp_path / "out", real_input=file))
    assert not proof.exists()
