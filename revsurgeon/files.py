"""Files that are written whole or not at all, and refused before any work is done for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from revsurgeon.errors import UsageError


def check_target(path: Path | None, *, force: bool = True) -> None:
    """Refuse a path that no file can be written to.

    Args:
        path: of the file; None is fine.
        force: whether a file that is there may be replaced.

    Raises:
        UsageError: the directory is not there or cannot be written to, or something is there already.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise UsageError("the directory to write into is not there.", where=str(path.parent))
    if path.is_dir():
        raise UsageError("a directory is where a file is to be written.", where=str(path))
    if path.exists() and not force:
        raise UsageError("the file is there already.", where=str(path), hint="Replace it: --force")
    if not os.access(path.parent, os.W_OK):
        raise UsageError("the directory cannot be written to.", where=str(path.parent))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its name and place when the context ends well.

    What is left of one that was killed is a hidden file whose name ends like the path's.
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text that is never seen half written."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")
