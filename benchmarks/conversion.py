"""Memory and time of a conversion of about 1 GB, against a plain copy of its files.

    python -m benchmarks.conversion [--layers 20] [--output benchmarks/results/conversion.json]

A vision transformer with random weights is written as transformers does it, and converted with the default
recipe in a process of its own. Peak memory is the most that the process held (VmHWM of /proc, so this runs
on Linux) above what it held after its imports; the files' cached pages are no part of it unless mapped.
The images are small, so that the self-check's forwards take little of either.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.circumstances import circumstances

RESULT = Path(__file__).parent / "results" / "conversion.json"
MOST_MEMORY, MOST_TIME = 1.3, 3.0
"""The goals: of the weights' bytes; of the time of a copy, beside imports and the self-check."""


def main() -> None:
    arguments = _arguments()
    if arguments.write:
        print(json.dumps(write(Path(arguments.write), arguments.layers)))
        return
    if arguments.convert:
        print(json.dumps(convert(Path(arguments.convert))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        source = Path(scratch) / "source"
        _child("--write", str(source), "--layers", str(arguments.layers))
        copied = copy(source, Path(scratch) / "copy")
        measured = json.loads(_child("--convert", str(source)))
        weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    result = {
        **circumstances(),
        "weights_bytes": weights,
        "copy_seconds": copied,
        **measured,
        "peak_of_weights": measured["peak_bytes"] / weights,
        "writing_and_reading_of_copy": (measured["seconds"] - measured["check_seconds"]) / copied,
        "goals": {"peak_of_weights": MOST_MEMORY, "writing_and_reading_of_copy": MOST_TIME},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.output.exists():  # the other one, of benchmarks.conversion_sharded, stays
        result |= {k: v for k, v in json.loads(arguments.output.read_text()).items() if k == "sharded"}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for name in ("weights_bytes", "peak_bytes", "peak_of_weights", "copy_seconds", "imports_seconds"):
        print(f"{name:30} {result[name]:>16,.2f}")
    for name in ("seconds", "check_seconds", "writing_and_reading_of_copy"):
        print(f"{name:30} {result[name]:>16,.2f}")


def write(directory: Path, layers: int) -> None:
    """A checkpoint of about 50 MB a layer, as transformers writes it."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    settings: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    config = ViTConfig(num_hidden_layers=layers, image_size=64, patch_size=16, **settings)
    ViTForImageClassification(config).save_pretrained(directory, max_shard_size="50GB")


def copy(source: Path, target: Path) -> float:
    """Seconds of a copy that is on the disk when it is done, as a conversion's output is."""
    start = time.perf_counter()
    shutil.copytree(source, target)
    for file in target.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    return time.perf_counter() - start


def convert(source: Path) -> dict[str, Any]:
    """Convert in this process, and measure it."""
    start = time.perf_counter()
    from transformers import ViTForImageClassification  # noqa: F401  # what the source needs

    import revsurgeon as rs
    from revsurgeon.artifact import read_manifest
    from revsurgeon.cli.convert import give_freed_memory_back

    give_freed_memory_back()  # as the command does
    rs.convert("demo", output=source.parent / "warm")  # imports what is imported late
    imported = time.perf_counter()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    phases: list[tuple[str, float, int]] = []

    def progress(message: str) -> None:
        phases.append((message.split()[0], time.perf_counter(), _memory("VmHWM") - before))

    path = rs.convert(str(source), output=source.parent / "out", progress=progress)
    progress("Done")
    seconds = {
        f"{name.lower()}_seconds": then - now for (name, now, _), (_, then, _) in itertools.pairwise(phases)
    }
    check = read_manifest(path).checks["self_check"]
    return {
        "imports_seconds": imported - start,
        "seconds": phases[-1][1] - phases[0][1],
        "check_seconds": seconds["finding_seconds"],
        "peak_bytes": phases[-1][2],
        "peak_bytes_when": {name.lower(): peak for name, _, peak in phases},
        "phases": seconds,
        "self_check": check,
    }


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _child(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.conversion", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20, help="about 50 MB each")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--scratch", help="a directory on the disk to measure; the system's own by default")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--convert", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
