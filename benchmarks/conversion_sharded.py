"""Memory and time of `revsurgeon convert` on a checkpoint of about 6 GB in shards of at most 1 GB.

    python -m benchmarks.conversion_sharded [--layers 30] [--scratch DIRECTORY]

A vision transformer of 200 MB a layer with random weights is written shard by shard, as transformers lays
it out, and converted by the command, as a stranger would. Meanwhile its /proc is read twenty times a second
(so this runs on Linux). Anonymous memory is what the process itself holds; pages of the weight files that it
has mapped are counted beside it, for the system may take those back at any time. The same command on the
demo network says what is due to torch and transformers alone. It needs about 13 GB on the disk, and writes
the part `sharded` of results/conversion.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.circumstances import circumstances
from benchmarks.conversion import RESULT

SHARD = 10**9
"""Bytes of the largest weight file, of the source and of what is written."""

_FIELDS = ("RssAnon", "RssFile", "VmRSS")
_PERIOD = 0.05


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        source = Path(scratch) / "source"
        write(source, arguments.layers)
        shards = [file.stat().st_size for file in source.glob("*.safetensors")]
        alone = measured("demo", Path(scratch) / "demo-out")
        found = measured(str(source), Path(scratch) / "out", *arguments.more)
        written = [file.stat().st_size for file in (Path(scratch) / "out").glob("*.safetensors")]
    above = found["peak_bytes"]["RssAnon"] - alone["peak_bytes"]["RssAnon"]
    result = {
        **{name: value for name, value in circumstances().items() if name != "gpu"},
        "options": arguments.more,
        "weights_bytes": sum(shards),
        "shards": len(shards),
        "largest_shard_bytes": max(shards),
        "written_shards": len(written),
        **found,
        "demo": alone,
        "anonymous_bytes_above_demo": above,
        "anonymous_of_largest_shard": above / max(shards),
    }
    _put(arguments.output, arguments.name, result)
    for name in ("weights_bytes", "largest_shard_bytes", "anonymous_bytes_above_demo", "seconds"):
        print(f"{name:30} {result[name]:>18,.1f}")


def write(directory: Path, layers: int) -> None:
    """A checkpoint that is never whole in memory: shard after shard, and the index that names them."""
    import torch
    from safetensors.torch import save_file
    from transformers import ViTConfig, ViTForImageClassification

    settings: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16}
    config = ViTConfig(num_hidden_layers=layers, image_size=64, patch_size=16, **settings)
    config.architectures = ["ViTForImageClassification"]
    config.save_pretrained(directory)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in ViTForImageClassification(config).state_dict().items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = 4 * shape.numel()
        if filled + size > SHARD - 10**6:  # room for the header
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(
            {name: _drawn(shapes[name], generator) for name in names}, directory / file, {"format": "pt"}
        )
        weight_map |= dict.fromkeys(names, file)
    total = sum(4 * shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _drawn(shape: Any, generator: Any) -> Any:
    """Weights as transformers starts them; those of norms are not all ones, so that none is like another."""
    import torch

    values = torch.empty(shape).normal_(0.0, 0.02, generator=generator)
    return values if len(shape) > 1 else values + 1.0


def measured(source: str, output: Path, *more: str) -> dict[str, Any]:
    """Run the command, and return its time and the most memory of each kind that it was seen with.

    Raises:
        CalledProcessError: it failed.
    """
    command = ["convert", source, "--output", str(output), "--max-shard-size", str(SHARD), *more]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "revsurgeon.cli", *command], stdout=subprocess.DEVNULL)
    peak = dict.fromkeys(_FIELDS, 0)
    while process.poll() is None:
        for name, value in _memory(process.pid).items():
            peak[name] = max(peak[name], value)
        time.sleep(_PERIOD)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak}


def _memory(process: int) -> dict[str, int]:
    """Resident bytes by kind; nothing of a process that has ended meanwhile."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split(":") for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, value in pairs if name in _FIELDS}


def _put(file: Path, name: str, result: dict[str, Any]) -> None:
    """Write one part of a result file; the others stay."""
    whole = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**whole, name: result}, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30, help="about 200 MB each")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--name", default="sharded", help="of the part of the result file")
    parser.add_argument("--scratch", help="a directory on the disk to measure; the system's own by default")
    parser.add_argument("more", nargs="*", help="options of revsurgeon convert, behind --")
    return parser.parse_args()


if __name__ == "__main__":
    main()
