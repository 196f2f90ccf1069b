"""The result is written into the artifact: all of it or nothing, and never a byte of the weights."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import revsurgeon as rs
from revsurgeon.artifact import read_manifest, read_tensors
from revsurgeon.checks.stamp import stamp
from tests.artifact.processes import contents, exit_code, fork, killed_before_call

Copy = Callable[[Path], Path]


@pytest.fixture(scope="module")
def report(demo: Path) -> rs.Report:
    return rs.verify(demo, seeds=1, device="cpu", only=["integrity", "provenance", "equations"])


def tensor_bytes(path: Path) -> bytes:
    """What stands behind the header."""
    file = path / "model.safetensors" if path.is_dir() else path
    raw = file.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def test_manifest_and_card_tell_the_result_and_the_weights_are_the_same_bytes(
    demo: Path, copy_of: Copy, report: rs.Report
) -> None:
    path = copy_of(demo)
    stamp(path, report)
    manifest = read_manifest(path)  # header and manifest.yaml agree, or this raises
    record = manifest.checks["verify"]
    assert isinstance(record, dict)
    assert record["passed"] is True
    assert record["extent"] == "partial"
    assert record["checks"]["integrity"] == {"verdict": "passed", "value": 0.0, "threshold": 0.0}
    assert "| equations | passed |" in (path / "README.md").read_text()
    assert tensor_bytes(path) == tensor_bytes(demo)
    old, new = contents(demo), contents(path)
    assert new["config.json"] == old["config.json"]
    assert {name for name in new if new[name] != old[name]} == {
        "model.safetensors",
        "manifest.yaml",
        "README.md",
    }
    assert rs.verify(path, only=["integrity"]).passed
    assert rs.chains(rs.load(path))


def test_a_second_stamp_takes_the_place_of_the_first(demo: Path, copy_of: Copy, report: rs.Report) -> None:
    path = copy_of(demo)
    stamp(path, report)
    first = contents(path)
    stamp(path, report)
    assert contents(path) == first
    assert (path / "README.md").read_text().count("## Checks") == 1
    assert (path / "README.md").read_text().count("| equations |") == 1


def test_what_someone_wrote_into_the_card_stays(demo: Path, copy_of: Copy, report: rs.Report) -> None:
    path = copy_of(demo)
    card = path / "README.md"
    card.write_text(card.read_text().replace("## Load it", "## My notes\n\nHello.\n\n## Load it"))
    stamp(path, report)
    assert "## My notes\n\nHello.\n\n## Load it" in card.read_text()
    card.write_text("# My own card\n")
    stamp(path, report)
    assert card.read_text().startswith("# My own card\n\n## Checks\n")


def test_a_file_alone_is_stamped_too(demo: Path, copy_of: Copy, tmp_path: Path, report: rs.Report) -> None:
    file = tmp_path / "alone.safetensors"
    file.write_bytes((demo / "model.safetensors").read_bytes())
    stamp(file, report)
    assert isinstance(read_manifest(file).checks["verify"], dict)
    assert tensor_bytes(file) == tensor_bytes(demo)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_the_file_of_a_directory_stands_for_the_directory(
    demo: Path, copy_of: Copy, report: rs.Report
) -> None:
    path = copy_of(demo)
    stamp(path / "model.safetensors", report)
    assert isinstance(read_manifest(path).checks["verify"], dict)


def test_every_shard_gets_the_manifest(sharded: Path, copy_of: Copy) -> None:
    path = copy_of(sharded)
    before = read_tensors(path, read_manifest(path))
    stamp(path, rs.verify(path, allow_python=True, only=["integrity"]))
    after = read_manifest(path)
    assert isinstance(after.checks["verify"], dict)
    tensors = read_tensors(path, after)  # which refuses shards of different manifests
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


def test_a_result_of_other_weights_is_noticed(demo: Path, copy_of: Copy, report: rs.Report) -> None:
    path = copy_of(demo)
    stamp(path, report)
    model = rs.load(path)
    again = rs.save(model, path.parent / "again" / path.name)
    assert contents(again) == contents(path)  # nothing was changed, so nothing is taken back
    with torch.no_grad():
        next(model.parameters()).add_(1)
    changed = read_manifest(rs.save(model, path.parent / "changed"))
    assert "not verified" in str(changed.checks["verify"])
    assert changed.source["finetuned"] is True
    rs.set_coefficients(rs.load(path), 0.5, 0.5)
    moved = rs.load(path)
    rs.set_coefficients(moved, 0.5, 0.5)
    assert "not verified" in str(read_manifest(rs.save(moved, path.parent / "moved")).checks["verify"])


def test_a_directory_with_other_things_in_it_is_left_alone(
    demo: Path, copy_of: Copy, report: rs.Report
) -> None:
    path = copy_of(demo)
    (path / "notes.txt").write_text("mine")
    before = contents(path)
    with pytest.raises(rs.ArtifactError, match="did not write"):
        stamp(path, report)
    assert contents(path) == before


def test_links_into_a_cache_are_left_alone(
    demo: Path, copy_of: Copy, tmp_path: Path, report: rs.Report
) -> None:
    path, blobs = copy_of(demo), tmp_path / "blobs"
    blobs.mkdir()
    (path / "model.safetensors").rename(blobs / "x")
    (path / "model.safetensors").symlink_to(blobs / "x")
    with pytest.raises(rs.ArtifactError):
        stamp(path, report)


@pytest.mark.slow
@pytest.mark.parametrize(
    "alone",
    [pytest.param(False, id="a directory", marks=pytest.mark.slow), pytest.param(True, id="a file alone")],
)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_artifact(
    demo: Path, tmp_path: Path, report: rs.Report, alone: bool
) -> None:
    path = tmp_path / ("alone.safetensors" if alone else "demo-dr2")

    def there() -> dict[str, bytes]:
        return {"": path.read_bytes()} if alone else contents(path)

    def reset() -> None:
        if alone:
            path.write_bytes((demo / "model.safetensors").read_bytes())
            return
        path.mkdir(exist_ok=True)
        for name, data in contents(demo).items():
            (path / name).write_bytes(data)

    reset()
    before = there()
    assert exit_code(fork(lambda: stamp(path, report))) == 0
    after = there()
    assert after != before
    seen = []
    for number in itertools.count():
        reset()
        code = killed_before_call(number, lambda: stamp(path, report))
        assert code in (0, -signal.SIGKILL)
        assert there() in (before, after)
        assert read_manifest(path)
        if code == 0:
            break
        seen.append(there() == after)
    # Every moment was met: all before the new artifact took its place, and those of tidying up after it.
    assert seen == sorted(seen)
    assert {False, True} <= set(seen)
    reset()
    stamp(path, report)  # over whatever the killed ones have left
    assert there() == after
    assert len([p for p in tmp_path.iterdir() if p.name.startswith(".")]) == 0
