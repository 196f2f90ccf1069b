"""An output appears all at once or not at all: kills, full disks, Ctrl-C, two runs, odd places."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from revsurgeon.artifact import (
    Manifest,
    changed_tensors,
    check_output,
    read_manifest,
    read_tensors,
    rename,
    staging,
    write_artifact,
)
from revsurgeon.errors import ArtifactError

from .processes import contents, exit_code, fork

Tensors = dict[str, torch.Tensor]
Write = Callable[..., Path]


@pytest.fixture
def write(tensors: Tensors, manifest: Manifest) -> Write:
    """Write the small artifact; `marked` is told apart by its card, and by its bytes."""

    def run(output: Path, *, force: bool = False, card: str = "old", tensors: Tensors = tensors) -> Path:
        marked = manifest.model_copy(update={"revsurgeon": card})
        return write_artifact(output, tensors, marked, config=None, card=card, force=force)

    return run


@pytest.fixture(params=["exchange", "no exchange"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the exchange of two directories, and as on a system that does not have it."""
    if request.param == "no exchange":
        monkeypatch.setattr(rename, "_renameat2", lambda source, target, flags: False)
    return request.param


def is_whole(directory: Path) -> bool:
    """Whether it reads as an artifact, to the last bit."""
    try:
        manifest = read_manifest(directory)
        return changed_tensors(read_tensors(directory, manifest), manifest) == []
    except ArtifactError:
        return False


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".") and path.is_dir()]


# What may be replaced


def test_an_output_that_is_there_is_refused_without_force(tmp_path: Path, write: Write) -> None:
    output = write(tmp_path / "out")
    before = contents(output)
    with pytest.raises(ArtifactError, match=r"already there(.|\n)*--force"):
        write(output, card="new")
    assert contents(output) == before


def test_force_replaces_an_artifact(tmp_path: Path, write: Write, renames: str) -> None:
    output = write(tmp_path / "out")
    write(output, force=True, card="new")
    assert (output / "README.md").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_does_not_delete_what_revsurgeon_did_not_write(tmp_path: Path, write: Write) -> None:
    output = write(tmp_path / "out")
    (output / "optimizer.pt").write_bytes(b"weeks of work")
    before = contents(output)
    with pytest.raises(ArtifactError, match=r"optimizer\.pt"):
        write(output, force=True, card="new")
    assert contents(output) == before


def test_force_does_not_replace_a_pretrained_checkpoint_that_has_the_same_file_names(
    tmp_path: Path, write: Write
) -> None:
    for name in ("model.safetensors", "config.json", "README.md"):
        (tmp_path / name).write_bytes(b"precious")
    output = tmp_path / "pretrained"
    output.mkdir()
    (output / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(ArtifactError, match="did not write"):
        write(output, force=True)
    assert contents(output) == {"model.safetensors": b"precious"}


def test_force_takes_an_empty_directory(tmp_path: Path, write: Write, renames: str) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="already there"):
        write(tmp_path / "out")
    assert is_whole(write(tmp_path / "out", force=True))


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_never_replaced(tmp_path: Path, write: Write, force: bool) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtifactError, match="is a file"):
        write(tmp_path / "out", force=force)
    assert contents(tmp_path) == {"out": b"mine"}


def test_the_refusal_can_be_had_before_the_work(tmp_path: Path, write: Write) -> None:
    output = write(tmp_path / "out")
    check_output(tmp_path / "other", force=False)
    check_output(output, force=True)
    with pytest.raises(ArtifactError, match="already there"):
        check_output(output, force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Where


def test_missing_parents_are_made(tmp_path: Path, write: Write) -> None:
    assert is_whole(write(tmp_path / "a" / "b" / "out"))


def test_parents_that_were_made_go_when_the_writing_fails(tmp_path: Path, write: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a" / "b" / "out", tensors=Interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [".", "..", "../here", "sub/.."])
def test_the_working_directory_is_not_replaced(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(ArtifactError, match="working directory"):
        write(Path(place), force=True)


def test_a_bare_name_goes_into_the_working_directory(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert write(Path("out")) == Path("out")
    assert is_whole(tmp_path / "out")


def test_a_link_to_a_directory_is_followed_and_stays_a_link(
    tmp_path: Path, write: Write, renames: str
) -> None:
    real = write(tmp_path / "disk" / "real")
    link = tmp_path / "link"
    link.symlink_to(real)
    with pytest.raises(ArtifactError, match="already there"):
        write(link)
    write(link, force=True, card="new")
    assert link.is_symlink()
    assert (real / "README.md").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_link_to_nothing_yet_makes_what_it_names(tmp_path: Path, write: Write) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    write(tmp_path / "link")
    assert is_whole(tmp_path / "disk" / "real")


def test_a_link_to_itself_is_an_error_in_words(tmp_path: Path, write: Write) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArtifactError, match="leads nowhere"):
        write(tmp_path / "loop")


@pytest.mark.parametrize("place", ["file/out", "x" * 300, "/proc/nothing/out"])
def test_a_place_that_cannot_be_written_is_an_error_in_words(
    tmp_path: Path, write: Write, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        write(tmp_path / place)
    assert caught.value.exit_code == 2
    assert contents(tmp_path) == {"file": b"mine"}


def test_the_new_directory_has_the_permissions_that_the_user_gives_to_any(
    tmp_path: Path, write: Write
) -> None:
    (tmp_path / "any").mkdir()
    (tmp_path / "any.txt").touch()
    output = write(tmp_path / "out")
    assert output.stat().st_mode == (tmp_path / "any").stat().st_mode
    assert {path.stat().st_mode for path in output.iterdir()} == {(tmp_path / "any.txt").stat().st_mode}


# Failures


class Interrupted(Mapping[str, torch.Tensor]):
    """A state dict whose last tensor never comes, because someone presses Ctrl-C."""

    def __init__(self) -> None:
        self.asked = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked += name == "b"
        if self.asked > 1:  # the first time is for its shape
            raise KeyboardInterrupt
        return torch.zeros(1000)

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_leaves_what_was_there_before(tmp_path: Path, write: Write, there: bool) -> None:
    output = tmp_path / "out"
    before = contents(write(output)) if there else {}
    with pytest.raises(KeyboardInterrupt):
        write(output, force=True, tensors=Interrupted())
    assert (contents(output) if there else {}) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if there else [])


@contextmanager
def little_room(folder: Path) -> Iterator[None]:
    """A disk of 1 MiB where one can be mounted, else a limit of 1 MiB on every file."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        with file_size_limit():
            yield


@contextmanager
def file_size_limit(limit: int = 1 << 20) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limited", [little_room, lambda folder: file_size_limit()])
def test_a_full_disk_is_an_error_in_words_and_leaves_what_was_there_before(
    tmp_path: Path, write: Write, limited: Callable[[Path], Iterator[None]]
) -> None:
    with limited(tmp_path):
        output = write(tmp_path / "out")
        before = contents(output)
        with pytest.raises(ArtifactError, match="not enough room"):
            write(output, force=True, tensors={"a": torch.zeros(1 << 20)})
        assert contents(output) == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(ArtifactError, match="already there"), staging.staged(output, force=False):
        output.mkdir()
    assert list(output.iterdir()) == []
    assert leftovers(tmp_path) == []


def test_what_comes_into_the_output_meanwhile_is_not_deleted(tmp_path: Path, write: Write) -> None:
    output = write(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"optimizer\.pt"), staging.staged(output, force=True):
        (output / "optimizer.pt").write_bytes(b"weeks of work")
    assert (output / "optimizer.pt").exists()
    assert is_whole(output)


def test_an_output_that_appears_at_the_last_moment_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    monkeypatch.setattr(staging, "_refuse", lambda *arguments: None)
    monkeypatch.setattr(staging.os.path, "lexists", lambda path: False)
    with (
        pytest.raises(ArtifactError, match="while it was being written"),
        staging.staged(output, force=False),
    ):
        output.mkdir()
    assert list(output.iterdir()) == []


# Two runs at once


def test_a_second_run_into_the_same_output_is_told_of_the_first(tmp_path: Path, write: Write) -> None:
    output = tmp_path / "out"
    errors = []

    class Nested(Interrupted):
        def __getitem__(self, name: str) -> torch.Tensor:
            try:
                write(output, force=True)
            except ArtifactError as error:
                errors.append(error.what)
            return torch.zeros(3)

    with staging.staged(output, force=False) as stage:
        (stage / "file").touch()
        Nested()["a"]
    assert errors == ["Another run is writing to the same output."]
    assert [path.name for path in output.iterdir()] == ["file"]


def test_a_lock_that_its_last_holder_removes_at_the_last_moment_is_taken_anew(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, removed = os.open, []

    def open_then_lose(path: str | Path, *arguments: int) -> int:
        descriptor = real_open(path, *arguments)
        if not removed:
            removed.append(path)
            Path(path).unlink()
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(staging.os, "open", open_then_lose)
        with staging.staged(tmp_path / "out", force=False), pytest.raises(ArtifactError, match="Another run"):
            write(tmp_path / "out")
    assert str(removed[0]).endswith("-lock")


def test_of_runs_that_start_together_exactly_one_wins(tmp_path: Path, write: Write) -> None:
    for number in range(15):
        output = tmp_path / f"out{number}"
        start = time.monotonic() + 0.01

        def body(card: str, output: Path = output, start: float = start) -> None:
            while time.monotonic() < start:
                pass
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115, until the child ends
            write(output, card=card)

        codes = [exit_code(child) for child in [fork(lambda c=c: body(c)) for c in ("one", "two")]]
        assert sorted(codes) == [0, 2]
        assert is_whole(output)
        assert (output / "README.md").read_text() == ("one" if codes[0] == 0 else "two")
    assert leftovers(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 15


# Kills


def check_after_kill(folder: Path, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """What any kill may leave: the old output or the new one, and nothing else that can be read."""
    output = folder / "out"
    if output.exists():
        assert contents(output) in (before, after)
        assert is_whole(output)
    else:
        assert not before or any(".replaced-" in path.name for path in leftovers(folder))
    assert [path for path in folder.rglob("*") if path != output and path.is_dir() and is_whole(path)] == []
    assert [path for path in folder.rglob("*.safetensors") if path.parent != output and is_whole(path)] == []


def check_next_run(folder: Path, before: dict[str, bytes], after: dict[str, bytes], write: Write) -> None:
    """The next run finds the old or the new one, and tidies up."""
    output = folder / "out"
    if before:
        with pytest.raises(ArtifactError):
            write(output, card="third")
        if output.exists():
            assert contents(output) in (before, after)
    write(output, card="third", force=True)
    assert (output / "README.md").read_text() == "third"
    assert [path.name for path in folder.iterdir()] == ["out"]


@pytest.mark.parametrize("there", [False, True])
def test_a_kill_at_any_system_call_leaves_the_old_or_the_new(
    tmp_path: Path, write: Write, renames: str, there: bool
) -> None:
    after = contents(write(tmp_path / "reference", card="new"))
    seen = 0
    for moment in range(10_000):
        folder = tmp_path / f"kill{moment}"
        folder.mkdir()
        before = contents(write(folder / "out")) if there else {}

        def body(folder: Path = folder, moment: int = moment) -> None:
            kill_at_event(moment)
            write(folder / "out", card="new", force=True)

        code = exit_code(fork(body))
        check_after_kill(folder, before, after)
        seen += code == -signal.SIGKILL and bool(leftovers(folder))
        check_next_run(folder, before, after, write)
        shutil.rmtree(folder)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0
    assert seen > 10


def kill_at_event(moment: int) -> None:
    """Die at the n-th file operation from now, told by the interpreter's audit events."""
    count = 0

    def hook(event: str, arguments: object) -> None:
        nonlocal count
        if event == "open" or event.startswith(("os.", "shutil.", "ctypes.", "fcntl.")):
            count += 1
            if count == moment + 1:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_a_kill_at_a_random_moment_leaves_the_old_or_the_new(
    tmp_path: Path, write: Write, there: bool
) -> None:
    large = {f"{number:02}": torch.full((1 << 18,), float(number)) for number in range(20)}  # 20 MiB
    started = time.monotonic()
    after = contents(write(tmp_path / "reference", card="new", tensors=large))
    duration = time.monotonic() - started
    chance = random.Random(0)
    ends = []
    for number in range(20):
        folder = tmp_path / f"kill{number}"
        folder.mkdir()
        before = contents(write(folder / "out")) if there else {}
        child = fork(lambda f=folder: write(f / "out", card="new", force=True, tensors=large))
        time.sleep(duration * chance.uniform(0, 1.1))
        os.kill(child, signal.SIGKILL)
        ends.append(exit_code(child))
        check_after_kill(folder, before, after)
        check_next_run(folder, before, after, write)
        shutil.rmtree(folder)
    assert -signal.SIGKILL in ends


def test_what_a_kill_left_cannot_be_loaded_even_if_it_is_complete(tmp_path: Path, write: Write) -> None:
    whole = write(tmp_path / "out").rename(tmp_path / ".out.partial-0123abcd")
    for path in (whole, whole / "model.safetensors"):
        with pytest.raises(ArtifactError, match="did not finish"):
            read_manifest(path)


def test_only_directories_of_dead_runs_of_this_output_are_removed(tmp_path: Path, write: Write) -> None:
    kept = [
        ".out2.partial-0123abcd",
        ".out.partial-0123",
        ".out.partial-0123abcd.bak",
        ".other.out.partial-01234567",
    ]
    for name in (*kept, ".out.partial-0123abcd"):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.partial-89abcdef").write_text("a file")
    (tmp_path / ".out.partial-fedcba98").symlink_to(tmp_path / kept[0])
    write(tmp_path / "out")
    names = [*kept, ".out.partial-89abcdef", ".out.partial-fedcba98", "out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_where_there_are_no_locks_nothing_is_taken_for_dead(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "fcntl", None)
    (tmp_path / ".out.partial-0123abcd").mkdir()
    assert is_whole(write(tmp_path / "out"))
    assert [path.name for path in leftovers(tmp_path)] == [".out.partial-0123abcd"]
