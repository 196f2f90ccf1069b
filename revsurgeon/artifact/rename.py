"""The two renames that Python does not have: exchange two directories, and rename onto nothing.

Linux has both in renameat2 (since 3.15, glibc 2.28). Elsewhere `exchange` says that it cannot.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2

# What a kernel or a file system without the flag answers.
_UNKNOWN = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def exchange(one: Path, other: Path) -> bool:
    """Swap two names at once; False, and nothing done, where that does not exist.

    Raises:
        OSError: it exists and failed.
    """
    return _renameat2(one, other, _EXCHANGE)


def rename_onto_nothing(source: Path, target: Path) -> None:
    """Rename, but never onto something; `os.rename` would replace an empty directory.

    Raises:
        FileExistsError: the target is there.
        OSError: any other failure.
    """
    if not _renameat2(source, target, _NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))
