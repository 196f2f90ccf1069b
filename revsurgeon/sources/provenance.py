"""What goes into the record of a source: hashes of files and versions of libraries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ALWAYS = ("revsurgeon", "torch", "safetensors")


def sha256(path: Path) -> str:
    """Return the hash of a file's content, computed from the content.

    Names in a download cache are not trusted: the download checks only the size.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: bytes) -> str:
    """Return the hash of bytes."""
    return hashlib.sha256(content).hexdigest()


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of the given distributions and of those that always take part."""
    versions = {}
    for name in sorted({*ALWAYS, *names}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was never installed
            versions[name] = "unknown"
    return versions
