"""How far `revsurgeon memory` is off: predicted against measured bytes of a training step, on this machine.

    python -m benchmarks.calibration            # half an hour on one core; writes results/calibration.json
    python -m benchmarks.calibration --table    # the tables of docs/memory.md from what was measured

Every network is trained in every way for a few steps. The allocator's own events say what a step takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.calibration_table import write_tables
from benchmarks.circumstances import circumstances

RESULT = Path(__file__).parent / "results" / "calibration.json"

_VIDEOMAE_SMALL = {
    **{"model_type": "videomae", "architectures": ["VideoMAEForVideoClassification"]},
    **{"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
}
_LLAMA_SMALL = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4000},
    **{"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 704},
    **{"num_key_value_heads": 2, "max_position_embeddings": 512, "use_cache": False},
}


@dataclass(frozen=True)
class Case:
    """A network at a size that trains here in seconds."""

    source: str
    sizes: dict[str, int] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    inputs: tuple[str, ...] = ()
    lora_rank: int | None = None
    amp: str = "none"


CASES = {
    "ViT-S, 4 x 224 x 224": Case("timm:vit_small_patch16_224", {"batch": 4}),
    "ViT-S, 4 x 224 x 224, bf16": Case("timm:vit_small_patch16_224", {"batch": 4}, amp="bf16"),
    "ViT-S, 4 x 224 x 224, LoRA 16": Case("timm:vit_small_patch16_224", {"batch": 4}, lora_rank=16),
    "Swin-T, 2 x 224 x 224": Case("timm:swin_tiny_patch4_window7_224", {"batch": 2}),
    "ConvNeXt-T, 2 x 224 x 224": Case("timm:convnext_tiny", {"batch": 2}),
    "ResNet-50, 4 x 224 x 224": Case("timm:resnet50", {"batch": 4}),
    "Video Swin-T, 1 x 8 x 112 x 112": Case(
        "torchvision:swin3d_t", {"batch": 1, "frames": 8, "image_size": 112}
    ),
    "VideoMAE-S, 2 x 16 x 112 x 112": Case("", {"batch": 2, "image_size": 112}, _VIDEOMAE_SMALL),
    "Llama-like, 4 x 256 tokens": Case(
        "", {"batch": 4}, _LLAMA_SMALL, ("input_ids=4x256:int64", "attention_mask=4x256:int64")
    ),
}


@contextmanager
def source_of(case: Case) -> Iterator[str]:
    """What `revsurgeon` is given: a name, or a directory with a config."""
    if case.config is None:
        yield case.source
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / str(case.config["model_type"])
        path.mkdir()
        (path / "config.json").write_text(json.dumps(case.config), encoding="utf-8")
        yield str(path)


def calibrate(case: Case, steps: int) -> list[dict[str, Any]]:
    """All ways to train one network: predicted and measured."""
    from revsurgeon.memory.bench import bench
    from revsurgeon.memory.sizes import Sizes

    with source_of(case) as source:
        report = bench(
            source,
            sizes=[Sizes(**case.sizes)],
            inputs=case.inputs or None,
            amp=case.amp,
            lora_rank=case.lora_rank,
            device="cpu",
            steps=steps,
            random_weights=True,
            tell=lambda text: print(" ", text, file=sys.stderr, flush=True),
        )
    rows: list[dict[str, Any]] = report.to_dict()["rows"]
    # Bytes only: times are worth something on a machine that does nothing else, and are measured elsewhere.
    without = ("seconds", "all_seconds", "samples_per_second", "time_ratio", "predicted_seconds")
    return [{name: value for name, value in row.items() if name not in without} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="a network whose title has this; the others are kept")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only write the tables")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"cases": {}}
    if not arguments.table:
        import torch

        torch.set_num_threads(arguments.threads)
        for title, case in CASES.items():
            if arguments.only and not any(word in title for word in arguments.only):
                continue
            print(title, file=sys.stderr, flush=True)
            found["cases"][title] = calibrate(case, arguments.steps)
            found["circumstances"] = {**circumstances(), "threads": arguments.threads}
            RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_tables(found)


if __name__ == "__main__":
    main()
