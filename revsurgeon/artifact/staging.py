"""A directory that comes to be all at once, or not at all.

What is written goes to a hidden sibling of the output, on the same file system, and takes the
output's name in one rename. A lock file, `.NAME.revsurgeon-lock`, is held from start to end: whoever holds it
knows that every other staging directory of that name was left by a dead process, and may remove it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from revsurgeon.artifact.names import foreign_names
from revsurgeon.artifact.rename import exchange, rename_onto_nothing
from revsurgeon.errors import ArtifactError

try:
    import fcntl
except ImportError:  # Windows: no lock, so that nothing is ever taken for dead
    fcntl = None  # type: ignore[assignment]

_LEFTOVER = re.compile(r"\..+\.(partial|replaced)-[0-9a-f]{8}\Z")

_LOCK = ".revsurgeon-lock"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_leftover(directory: Path) -> bool:
    """Whether a directory is what an interrupted run left behind, by its name."""
    return _LEFTOVER.match(directory.name) is not None


def check_output(output: Path | str, *, force: bool) -> None:
    """Say early, before any work is done, that `write_artifact` would refuse this output.

    Raises:
        ArtifactError: it is there and may not be replaced, or cannot be a directory's name.
    """
    _refuse(_target(Path(output)), Path(output), force)


@contextmanager
def staged(output: Path, *, force: bool) -> Iterator[Path]:
    """An empty directory to write into, which becomes `output` when the block ends without an error.

    Whatever goes wrong inside, a Ctrl-C included, the directory is removed and `output` is what it was.
    A kill leaves it behind, hidden; the next run into the same output removes it.

    Args:
        output: the final place; its parents are made. A symbolic link to a directory is followed.
        force: replace an artifact that is there.

    Raises:
        ArtifactError: `output` is there and may not be replaced, another run is writing to it, or the
            file system refuses.
    """
    target = _target(output)
    _refuse(target, output, force)
    made: list[Path] = []
    stage: Path | None = None
    try:
        _make_parents(target.parent, made)
        with _only_writer(target) as certain:
            if certain:
                _clean_up(target)
            _refuse(target, output, force)
            stage = _sibling(target, "partial")
            try:
                stage.mkdir()
                yield stage
                _flush(stage)
                _refuse(target, output, force)  # it may have appeared, or have got more in it, meanwhile
                _publish(stage, target)
                _flush_directory(target.parent)
                made.clear()
            finally:
                # By now this is the half-made directory, the old one after an exchange, or nothing.
                shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise _in_words(error, output) from error
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _target(output: Path) -> Path:
    try:
        target = output.expanduser().resolve()
        nowhere = os.path.islink(target)  # a link to itself, which Python 3.13 leaves as it is
    except (RuntimeError, OSError):  # which earlier versions refuse
        nowhere = True
    if nowhere:
        raise ArtifactError("The output is a symbolic link that leads nowhere.", where=str(output))
    if Path.cwd().is_relative_to(target):
        raise ArtifactError(
            "The output is the working directory, or contains it.",
            where=str(output),
            hint="Name a directory inside it, for example: --output my-model-dr2",
        )
    return target


def _refuse(target: Path, output: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    where = str(output)
    if not target.is_dir():
        raise ArtifactError(
            "The output is a file, and an artifact is a directory.", where=where, hint="Choose another name."
        )
    if not force:
        raise ArtifactError(
            "The output is already there.",
            where=where,
            hint="Choose another name, or replace it with --force.",
        )
    if os.path.ismount(target):
        raise ArtifactError(
            "The output is a mount point, which cannot be replaced.",
            where=where,
            hint="Name a directory inside it.",
        )
    foreign = foreign_names(target)
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise ArtifactError(
            "The output holds things that revsurgeon did not write, so it is not replaced.",
            where=f"{where}: {shown}",
            hint="Move them away, or choose another name.",
        )


def _make_parents(parent: Path, made: list[Path]) -> None:
    """Make a directory and those above it, noting what was made, the deepest first."""
    missing = [p for p in (parent, *parent.parents) if not p.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            made.insert(0, path)


@contextmanager
def _only_writer(target: Path) -> Iterator[bool]:
    """Hold the output's lock; yields whether there is such a thing as a lock on this file system."""
    path = target.parent / f".{target.name}{_LOCK}"
    descriptor, certain = _locked(path)
    try:
        yield certain
    finally:
        # Removed while it is held: who waits for it sees that the name is gone and starts again.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _locked(path: Path) -> tuple[int, bool]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if fcntl is None:
            return descriptor, False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ArtifactError(
                "Another run is writing to the same output.",
                where=str(path.with_name(path.name[1:].removesuffix(_LOCK))),
                hint="Wait for it, or choose another name.",
            ) from None
        except OSError:  # a file system without locks
            return descriptor, False
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, True
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _clean_up(target: Path) -> None:
    """Put back what a dead run had moved aside, and remove what dead runs left."""
    for path in sorted(target.parent.iterdir()):
        name, _, ending = path.name[1:].rpartition(".")
        if name != target.name or not is_leftover(path) or not stat.S_ISDIR(path.lstat().st_mode):
            continue
        if ending.startswith("replaced-") and not os.path.lexists(target):
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _publish(stage: Path, target: Path) -> None:
    if not os.path.lexists(target):
        rename_onto_nothing(stage, target)
    elif not exchange(stage, target):
        aside = _sibling(target, "replaced")
        target.rename(aside)
        try:
            stage.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _sibling(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{kind}-{secrets.token_hex(4)}"


def _flush(directory: Path) -> None:
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    _flush_directory(directory)


def _flush_directory(directory: Path) -> None:
    if os.name == "nt":  # directories cannot be opened there
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _in_words(error: OSError, output: Path) -> ArtifactError:
    if error.errno in _FULL:
        what, hint = "There is not enough room for the output", "Free some space, or choose another disk."
    elif error.errno == errno.EEXIST:
        what, hint = "The output appeared while it was being written", "Choose another name, or use --force."
    else:
        what, hint = "The output cannot be written", "Choose a place that you can write to."
    return ArtifactError(f"{what}: {error.strerror}.", where=str(output), hint=hint)
