"""What happens around a command: little room, no home, narrow terminals, signals, other runs, other files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import revsurgeon as rs
from revsurgeon.checks.stamp import stamp
from revsurgeon.cli.app import run
from revsurgeon.recipes import preset_names
from tests.artifact.processes import contents, exit_code, fork
from tests.artifact.test_artifact_staging import file_size_limit
from tests.cli.conftest import PACKAGE

DEMO = Path(rs.__file__).parent / "sources" / "demo"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rs.convert("demo", mode="re2", output=tmp_path_factory.mktemp("old") / "out", verify=False)


def quick(output: Path, source: str = "demo", **options: object) -> Path:
    return rs.convert(source, output=output, verify=False, start=(0.9, 0.1), arithmetic="exact", **options)


# Little room


COMMANDS: dict[str, Callable[[Path], object]] = {
    "convert": lambda path: quick(path, force=True),
    "save": lambda path: rs.save(rs.load(path), path, force=True),
    "stamp": lambda path: stamp(path, rs.verify(path, seeds=1, only=["integrity"])),
}


@pytest.mark.parametrize(
    "command", ["convert", *(pytest.param(c, marks=pytest.mark.slow) for c in ("save", "stamp"))]
)
def test_a_full_disk_leaves_the_old_artifact(tmp_path: Path, old: Path, command: str) -> None:
    path = Path(shutil.copytree(old, tmp_path / "out"))
    before = contents(path)

    def body() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        COMMANDS[command](path)

    assert exit_code(fork(body)) == 2  # an ArtifactError
    assert contents(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_the_command_line_says_that_there_is_no_room(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with file_size_limit(100_000):
        code = run(["convert", "demo", "--output", "out", "--no-verify", "--start", "0.9,0.1"])
    assert code == 2
    assert "not enough room" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Signals


@pytest.mark.slow
def test_sigterm_leaves_the_old_or_the_new(tmp_path: Path, old: Path) -> None:
    path = Path(shutil.copytree(old, tmp_path / "work" / "out"))
    began = time.monotonic()
    assert exit_code(fork(lambda: quick(path, force=True))) == 0
    duration, new = time.monotonic() - began, contents(path)
    for part in (0.3, 0.6, 0.9, 0.97):
        shutil.rmtree(tmp_path / "work")
        shutil.copytree(old, path)
        child = fork(lambda: quick(path, force=True))
        time.sleep(part * duration)
        os.kill(child, signal.SIGTERM)
        assert exit_code(child) in (0, -signal.SIGTERM)
        assert contents(path) in (contents(old), new)
        assert rs.chains(rs.load(path))


# Other runs and changing files


def test_of_two_conversions_into_the_same_output_one_succeeds(tmp_path: Path) -> None:
    output = tmp_path / "folder" / "out"
    children = [fork(lambda: quick(output)) for _ in range(2)]
    assert sorted(exit_code(child) for child in children) == [0, 2]
    assert rs.chains(rs.load(output))
    assert [file.name for file in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["model.safetensors", pytest.param("config.json", marks=pytest.mark.slow)])
def test_a_source_that_changes_while_it_is_read_is_refused_or_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Another file of the same name takes its place between the reading and the hashing."""
    from revsurgeon.sources import weights

    source = Path(shutil.copytree(DEMO, tmp_path / "source"))
    expected = contents(quick(tmp_path / "expected" / "out", str(source)))
    original = weights.sha256

    def replaced(file: Path) -> str:
        other = source / "other"
        other.write_bytes((source / name).read_bytes() + b" ")
        other.rename(source / name)
        return original(file)

    monkeypatch.setattr(weights, "sha256", replaced)
    if name == "config.json":  # it was read whole, and hashed as it was read
        assert contents(quick(tmp_path / "out", str(source))) == expected
        return
    with pytest.raises(rs.SourceError, match="changed while they were read"):
        quick(tmp_path / "out", str(source))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_clock_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = contents(quick(tmp_path / "a" / "out"))
    clock = iter(range(10**9, 0, -(10**6)))  # it runs backwards
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert contents(quick(tmp_path / "b" / "out")) == first


# Where it runs


def bare(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a process that knows nothing of its user but what is said."""
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": str(PACKAGE.parent),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "revsurgeon.cli", *arguments],
        capture_output=True,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_without_home_on_a_narrow_terminal_without_utf_8_it_converts(tmp_path: Path) -> None:
    surroundings = {
        "HOME": str(tmp_path / "no such home"),
        "COLUMNS": "40",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii:strict",
        "TERM": "dumb",
    }
    command = ("convert", "demo", "--output", "out", "--no-verify", "--start", "0.9,0.1")
    done = bare(*command, **surroundings)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert rs.chains(rs.load(tmp_path / "out"))
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    refused = bare("recipes", "validate", "näme.yaml", **surroundings)
    assert refused.returncode == 2
    assert refused.stderr.isascii()


@pytest.mark.parametrize("name", ["C:\\out", pytest.param("a\\b", marks=pytest.mark.slow), "näme -x "])
def test_odd_names_of_outputs_are_names(tmp_path: Path, name: str) -> None:
    output = quick(tmp_path / name)
    assert output.name == name
    assert rs.chains(rs.load(output))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_real_terminal_of_40_columns_gets_every_name_whole(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    command = [sys.executable, "-m", "revsurgeon.cli", "recipes", "list"]
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(PACKAGE.parent)}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child:
        os.close(theirs)
        told = b""
        with contextlib.suppress(OSError):  # Linux' way to say that nobody is left on the other side
            while part := os.read(ours, 1 << 16):
                told += part
    os.close(ours)
    assert child.returncode == 0
    words = told.decode().split()
    assert [name for name in preset_names() if name not in words] == []
