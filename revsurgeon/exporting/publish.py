"""Files that come to be only when they are right: written beside their place, and renamed at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from revsurgeon.artifact.rename import rename_onto_nothing
from revsurgeon.errors import ArtifactError, UsageError


def check_target(target: Path, *, force: bool) -> None:
    """Say early, before any work is done, that a file cannot be written.

    Raises:
        UsageError: its directory is not there, or it is there itself and may not be replaced.
    """
    directory = target.parent
    if not directory.is_dir():
        raise UsageError(
            "the output's directory is not there.", where=str(directory), hint="Make it, or choose another."
        )
    if target.is_dir():
        raise UsageError("the output is a directory.", where=str(target), hint="Name a file in it.")
    for path in (target, _beside(target)):
        if os.path.lexists(path) and not force:
            raise UsageError(
                "the output is already there.",
                where=str(path),
                hint="Choose another name, or replace it with --force.",
            )


@contextlib.contextmanager
def published(target: Path, *, force: bool) -> Iterator[Path]:
    """A directory to write into, whose files get their places when the block ends without an error.

    Whatever goes wrong inside, a Ctrl-C included, the directory is removed and the target is what it was.

    Args:
        target: the file. Another one that belongs to it may be written under its name and an ending.
        force: replace what is there.

    Raises:
        UsageError: the target is there by now.
        ArtifactError: the file system refuses.
    """
    check_target(target, force=force)
    stage: Path | None = None
    try:
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        yield stage
        files = sorted(stage.iterdir(), key=lambda file: file.name == target.name)
        mode = _mode_of_new_files(stage)  # safetensors writes for the owner alone
        for file in files:  # the target last: what it needs is there before it
            file.chmod(mode)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            if force:
                file.replace(target.with_name(file.name))
            else:
                rename_onto_nothing(file, target.with_name(file.name))
    except FileExistsError as error:
        raise UsageError(
            "the output appeared while it was being written.", where=str(target), hint="Use --force."
        ) from error
    except OSError as error:
        raise ArtifactError(f"The output cannot be written: {error.strerror}.", where=str(target)) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _beside(target: Path) -> Path:
    """Where the weights of a large ONNX program go."""
    return target.with_name(f"{target.name}.data")


def _mode_of_new_files(directory: Path) -> int:
    probe = directory / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode
