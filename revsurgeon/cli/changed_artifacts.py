"""The pre-commit hook: `python -m revsurgeon.cli.changed_artifacts [OPTIONS] FILE...` verifies what changed.

pre-commit appends the changed files to the hook's own arguments, which are options of `revsurgeon verify`.
Files of one artifact are verified once; weights that revsurgeon did not write are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from revsurgeon.artifact.header import read_header
from revsurgeon.artifact.names import INDEX, MANIFEST, WEIGHTS
from revsurgeon.cli.app import run
from revsurgeon.errors import ArtifactError

DEFAULTS = ("--offline", "--only", "integrity", "--only", "equivalence", "--only", "reversibility")
"""What is fast enough for every commit, where the hook's `args` say nothing else."""


def main(arguments: Sequence[str]) -> int:
    """Verify every artifact that files among the arguments belong to; the highest exit code of them."""
    files = [argument for argument in arguments if Path(argument).is_file()]
    options = [argument for argument in arguments if argument not in files] or list(DEFAULTS)
    codes = [run(["verify", str(path), *options]) for path in artifacts_of(files)]
    return max(codes, default=0)


def artifacts_of(files: Sequence[str]) -> list[Path]:
    """The artifacts that files belong to: their directory, or a weight file that stands alone."""
    found: dict[Path, None] = {}
    for file in map(Path, files):
        if _is_artifact(file.parent):
            found[file.parent] = None
        elif file.suffix == ".safetensors" and _has_manifest(file):
            found[file] = None
    return list(found)


def _is_artifact(directory: Path) -> bool:
    """Whether a directory has weights and a manifest of this project; many things have a manifest.yaml."""
    manifest = directory / MANIFEST
    if not manifest.is_file() or not any((directory / name).is_file() for name in (WEIGHTS, INDEX)):
        return False
    with manifest.open("rb") as opened:
        return opened.read(15) == b"format_version:"


def _has_manifest(file: Path) -> bool:
    try:
        return "revsurgeon" in read_header(file).metadata
    except ArtifactError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
