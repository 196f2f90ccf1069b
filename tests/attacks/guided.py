"""The same readers, fed by atheris, led by the lines that an input reaches: python -m tests.attacks.guided.

atheris is no dependency: pip install atheris. Its options come after the command, for example -runs=100000.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["revsurgeon.artifact", "revsurgeon.recipes"]):
    import revsurgeon.artifact.read
    import revsurgeon.recipes

from revsurgeon.errors import ArtifactError, RecipeError
from tests.attacks.fuzz import Targets
from tests.attacks.small_artifacts import write_small


def main() -> None:
    """Run until an exception that is no RevsurgeonError comes out, or the given number of runs is done."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    targets = Targets(folder, *write_small(folder / "sound"))
    readers = [
        targets.read_recipe,
        targets.read_json,
        targets.read_yaml,
        targets.read_whole,
        targets.read_sharded,
    ]

    def one(raw: bytes) -> None:
        """The first byte chooses the reader."""
        if raw:
            with suppress(ArtifactError, RecipeError):
                readers[raw[0] % len(readers)](raw[1:])

    seeds = folder / "seeds"
    seeds.mkdir()
    (seeds / "0").write_bytes(b"\0" + targets.recipes[0])
    (seeds / "1").write_bytes(
        b"\1" + revsurgeon.artifact.read.read_manifest(targets.whole).to_json().encode()
    )
    (seeds / "2").write_bytes(b"\2" + targets.yaml)
    (seeds / "3").write_bytes(b"\3" + targets.raw)
    (seeds / "4").write_bytes(b"\4" + targets.index)
    atheris.Setup([*sys.argv, str(seeds), "-max_len=20000", "-timeout=20", "-rss_limit_mb=4096"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
