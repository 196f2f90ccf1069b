"""Child processes that are cheap because they do not import torch again, and what they leave behind."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from revsurgeon.errors import ArtifactError


def contents(directory: Path) -> dict[str, bytes]:
    """Everything below a directory: relative names and bytes."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def fork(body: Callable[[], object]) -> int:
    """Run something in a copy of this process; its process id. It exits 0, 2 (ArtifactError) or 1."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        body()
        code = 0
    except ArtifactError:
        code = 2
    finally:  # never back into pytest
        if code == 1:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)


def exit_code(child: int) -> int:
    """Wait for a forked child; negative is the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


CALLS = (
    "close",
    "fsync",
    "link",
    "mkdir",
    "open",
    "rename",
    "replace",
    "rmdir",
    "sendfile",
    "unlink",
    "write",
)
"""Calls to the system between which a file can be in another state."""


def killed_before_call(number: int, body: Callable[[], object]) -> int:
    """Run something in a copy of this process, which kills itself before that one of its `CALLS`.

    They are counted from 0. So a test can meet every moment that there is, on a machine of any speed.

    Returns:
        -SIGKILL, or 0 where the body made no more than `number` calls.
    """

    def before(made: int) -> None:
        if made == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return exit_code(fork(lambda: _counting(before, body)))


def made_calls(body: Callable[[], object]) -> int:
    """Run something in a copy of this process; how many of the `CALLS` it made."""
    reader, writer = os.pipe()
    child = fork(lambda: os.write(writer, str(_counting(lambda made: None, body)).encode()))
    os.close(writer)
    with os.fdopen(reader) as file:
        told = file.read()
    assert exit_code(child) == 0
    return int(told)


def _counting(before: Callable[[int], object], body: Callable[[], object]) -> int:
    """Run something, and call `before` with the number of each of its `CALLS`; how many there were."""
    made = 0

    def count(frame: Any, event: str, function: Any) -> None:
        nonlocal made
        if event != "c_call" or function.__name__ not in CALLS:
            return
        if isinstance(getattr(function, "__self__", None), (io.StringIO, io.BytesIO)):
            return
        before(made)
        made += 1

    sys.setprofile(count)
    body()
    sys.setprofile(None)
    return made
