"""`revsurgeon bench`: what a training step takes on this machine, for every way to train."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output
from revsurgeon.errors import UsageError
from revsurgeon.files import check_target, write_text

if TYPE_CHECKING:
    from revsurgeon.memory.report import BenchReport
    from revsurgeon.memory.sizes import Sizes

EXAMPLES = examples(
    ("The network that travels with the package", "bench demo --batch 64"),
    ("Keep the result", "bench demo --batch 64 --output before.json"),
    ("Later, against it", "bench demo --batch 64 --compare before.json"),
    (
        "Memory against depth",
        "bench timm:vit_tiny_patch16_224 --random-weights --depth 2,4 --plot depth.png",
    ),
    ("Two ways only", "bench timm:resnet18 --random-weights --strategy stored --strategy exact"),
)

_LIST = "A number, or several as in 1,2,4."


def bench(
    source: options.Network,
    batch: Annotated[str | None, typer.Option(metavar="N", help=f"Samples of one forward. {_LIST}")] = None,
    frames: Annotated[str | None, typer.Option(metavar="N", help=f"Frames of a clip. {_LIST}")] = None,
    image_size: Annotated[str | None, typer.Option(metavar="N", help=f"Height and width. {_LIST}")] = None,
    depth: Annotated[
        str | None,
        typer.Option(metavar="N", help=f"Number of blocks, for networks built with one. {_LIST}"),
    ] = None,
    inputs: options.Inputs = None,
    amp: options.Amp = "none",
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="adamw or sgd (with momentum).")] = "adamw",
    accumulate: options.Accumulate = 1,
    lora_rank: Annotated[
        int | None, typer.Option(metavar="R", help="Freeze all weights but adapters of this rank (LoRA).")
    ] = None,
    strategy: options.Strategy = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Timed steps of a row, behind two others.")] = 5,
    device: Annotated[
        str | None, typer.Option(metavar="KIND", help="cuda or cpu. Default: cuda where there is one.")
    ] = None,
    recipe: options.Recipe = None,
    revision: options.Revision = None,
    random_weights: options.RandomWeights = False,
    allow_pickle: options.AllowPickle = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_python: options.AllowPython = False,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show the change against an earlier result.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result as JSON.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw a .png, .svg or .pdf: memory against what varies, and time against memory.",
        ),
    ] = None,
    force: options.ReplaceFile = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure a training step on this machine, for every way to train.

    Peak memory as the allocator counts it, time of a step, and the error of the gradients against stored
    activations, beside what `revsurgeon memory` predicts. A way that does not fit is a row that says so.
    """
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        sizes = _sizes(batch, frames, image_size, depth)
        earlier = None
        if compare is not None:
            from revsurgeon.memory.report import read_report

            earlier = read_report(compare)
        check_target(output, force=force)
        if plot is not None:
            from revsurgeon.errormap.pictures import check_picture

            check_picture(plot)
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler, which counts bytes on a CPU, is chatty
        out.step("Starting torch")
        from revsurgeon.memory.bench import bench as measure_all

        found = measure_all(
            source,
            sizes=sizes,
            strategies=strategy or None,
            inputs=inputs or None,
            optimizer=optimizer,
            amp=amp,
            accumulate=accumulate,
            lora_rank=lora_rank,
            device=device,
            steps=steps,
            recipe=recipe,
            revision=revision,
            random_weights=random_weights,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            allow_python=allow_python,
            command=shlex.join(["revsurgeon", *sys.argv[1:]]),
            tell=out.step,
        )
        document = found.to_dict()
        if output is not None:
            write_text(output, json.dumps(document, indent=2) + "\n")
        if plot is not None:
            from revsurgeon.memory.bench_plot import draw

            draw(found, plot)
        out.result(document, *_for_people(out, found, earlier), brief=_brief(found))


def _sizes(batch: str | None, frames: str | None, image_size: str | None, depth: str | None) -> list[Sizes]:
    """All sizes to measure at; one of them may have several values."""
    from revsurgeon.memory.sizes import Sizes

    given = {"batch": batch, "frames": frames, "image_size": image_size, "depth": depth}
    values = {name: _numbers(name, text) for name, text in given.items()}
    several = [name for name, found in values.items() if len(found) > 1]
    if len(several) > 1:
        raise UsageError(f"{several[0]} and {several[1]} have several values; one of them may.")
    first = {name: found[0] for name, found in values.items()}
    if not several:
        return [Sizes(**first)]
    return [Sizes(**{**first, several[0]: value}) for value in values[several[0]]]


def _numbers(name: str, text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"{text!r} is no number for --{name.replace('_', '-')}.",
            hint="Write one, or several as in 1,2,4.",
        )
    return [int(part) for part in parts]


def _for_people(out: Output, found: BenchReport, earlier: BenchReport | None) -> list[Any]:
    from revsurgeon.cli.bench_tables import changes_table, heading, rows_table

    if not out.for_people:
        return []
    lines: list[Any] = [heading(found), rows_table(found)]
    if earlier is not None:
        changes, differs = found.compared(earlier)
        lines += ["", changes_table(changes), *differs]
    return lines


def _brief(found: BenchReport) -> str:
    """With --quiet: the least peak in bytes."""
    peaks = [row.peak for row in found.rows if row.peak is not None]
    return str(min(peaks)) if peaks else "does not fit"
