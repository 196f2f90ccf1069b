"""The memory that Dr2Net's tables report, beside what is predicted for the backbones alone.

    python -m benchmarks.paper_memory      # some minutes; writes results/paper_memory.json and docs/memory.md

Dr2Net (Zhao et al., CVPR 2024), tables 2 to 4, reports savings of 46.1, 56.6, 79.5, 30.6 and 44.4 % over five
settings, at 1.32, 1.21, 1.78, 1.04 and 1.05 times the step time. Those are whole detectors and recognisers;
here are backbones of the same kinds, at sizes that are common for these tasks. Nothing is tuned to match.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.calibration import _VIDEOMAE_SMALL
from benchmarks.circumstances import circumstances

RESULT = Path(__file__).parent / "results" / "paper_memory.json"
PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
BEGIN = "<!-- from here to the end mark: python -m benchmarks.paper_memory -->"
END = "<!-- end mark of the papers' memory -->"
PAPER_SAVINGS = (46.1, 56.6, 79.5, 30.6, 44.4)
PAPER_TIMES = (1.32, 1.21, 1.78, 1.04, 1.05)


@dataclass(frozen=True)
class Setting:
    """A backbone at the size of a task."""

    source: str
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None


SETTINGS = {
    "Video Swin-T, 32 x 224 x 224, batch 2": Setting(
        "torchvision:swin3d_t", {"batch": 2, "frames": 32, "image_size": 224}
    ),
    "Video Swin-T, 8 x 360 x 640, batch 1": Setting("torchvision:swin3d_t", {"inputs": ["0=1x3x8x360x640"]}),
    "ViT-S (VideoMAE), 16 x 224 x 224, batch 8": Setting("", {"batch": 8}, _VIDEOMAE_SMALL),
    "ViT-S, 224 x 224, batch 32": Setting("timm:vit_small_patch16_224", {"batch": 32}),
    "Swin-T, 800 x 800, batch 2": Setting(
        "timm:swin_tiny_patch4_window7_224", {"batch": 2, "image_size": 800}
    ),
}


def predict(setting: Setting) -> dict[str, Any]:
    """The plan of one setting, as data."""
    import revsurgeon as rs

    with tempfile.TemporaryDirectory() as directory:
        source = setting.source
        if setting.config is not None:
            source = str(Path(directory) / "backbone")
            Path(source).mkdir()
            (Path(source) / "config.json").write_text(json.dumps(setting.config), encoding="utf-8")
        return rs.estimate_memory(source, **setting.options).to_dict()


def table(found: dict[str, Any]) -> str:
    """What was predicted, in Markdown."""
    lines = [
        "| backbone | stored, GB | checkpoint | exact | chunked | re2 | saved by re2 | predicted time of re2 "
        "| GPU |",
        "|" + " --- |" * 9,
    ]
    for title, plan in found["settings"].items():
        rows = {row["strategy"]: row for row in plan["rows"]}
        sizes = [
            f"{rows[name]['peak'] / 1e9:.2f}" for name in ("stored", "checkpoint", "exact", "chunked", "re2")
        ]
        saved = 1 - rows["re2"]["peak"] / rows["stored"]["peak"]
        cells = [title, *sizes, f"{saved:.1%}", f"{rows['re2']['time_ratio']:.2f}", "not measured yet"]
        lines.append("| " + " | ".join(cells) + " |")
    paper = ", ".join(
        f"{saving} % at {time}" for saving, time in zip(PAPER_SAVINGS, PAPER_TIMES, strict=True)
    )
    return "\n".join(
        [*lines, "", f"The paper's five settings, whole networks on its GPUs: {paper} times the step time."]
    )


def write(found: dict[str, Any], page: Path = PAGE) -> None:
    """Put the table between its marks."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        page.write_text(
            f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"settings": {}}
    if not arguments.table:
        for title, setting in SETTINGS.items():
            print(title, file=sys.stderr, flush=True)
            plan = predict(setting)
            found["settings"][title] = {
                name: plan[name] for name in ("device", "settings", "inputs", "point", "rows")
            }
            found["circumstances"] = circumstances()
            RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write(found)


if __name__ == "__main__":
    main()
