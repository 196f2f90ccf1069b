"""Child processes that are cheap because they do not import torch again, and what they leave behind."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

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
