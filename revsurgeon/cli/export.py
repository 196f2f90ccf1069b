"""`revsurgeon export`: a converted network as a program for inference, or as plain weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output

if TYPE_CHECKING:
    from revsurgeon.exporting import Export

EXAMPLES = examples(
    ("Convert the network that travels with the package, and finetune it", "convert demo --mode dr2"),
    ("The network at its present coefficients; torch.export.load('demo-dr2.pt2') runs it", "export demo-dr2"),
    ("For ONNX Runtime, with streams in float32", "export demo-dr2 --to onnx --arithmetic float"),
    (
        "The weights alone, under the names of the source",
        "export demo-dr2 --to weights --output plain.safetensors",
    ),
)


def export(
    path: options.Artifact,
    to: Annotated[
        Literal["torch-export", "onnx", "weights"],
        typer.Option(
            metavar="FORMAT",
            help="torch-export: a .pt2 file. onnx: a file for ONNX Runtime. weights: safetensors for the "
            "unrewired network, which computes something else unless the coefficients are (1, 0).",
        ),
    ] = "torch-export",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write. Default: PATH's name with .pt2, .onnx or .safetensors, here.",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(metavar="A", min=0, max=1, help="Instead of the network's present alpha."),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(metavar="B", min=0, max=1, help="Instead of the network's present beta.")
    ] = None,
    arithmetic: Annotated[
        Literal["float", "exact"] | None,
        typer.Option(
            metavar="KIND",
            help="Numbers of the streams: exact computes in float64 and rounds to the grid, as the network "
            "was trained; float needs no float64. Default: the network's.",
        ),
    ] = None,
    batch: Annotated[
        Literal["auto", "any", "fixed"],
        typer.Option(metavar="SIZE", help="any size, fixed: the example's, or auto: any where that can be."),
    ] = "auto",
    inputs: options.Inputs = None,
    real_input: options.RealInput = None,
    force: options.ReplaceFile = False,
    allow_python: options.AllowPython = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write a finetuned network as a program for inference, or its plain weights.

    The program computes what the network does, at fixed coefficients. It is run from the file and compared
    with the network before the file gets its name; where they differ nothing is written.
    """
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        out.step("Starting torch")
        from revsurgeon.exporting import export as write

        result = write(
            path,
            to,
            output=output,
            alpha=alpha,
            beta=beta,
            arithmetic=arithmetic,
            batch=batch,
            inputs=inputs or None,
            real_input=real_input,
            force=force,
            allow_python=allow_python,
            trust_remote_code=trust_remote_code,
            progress=out.step,
        )
        out.result(result.to_dict(), *_summary(result), brief=str(result.path))


def _summary(result: Export) -> list[str]:
    """What was written, for people."""
    size = sum(file.stat().st_size for file in result.files)
    lines = [f"Wrote {' and '.join(map(str, result.files))}, {size / 1e6:.1f} MB"]
    if result.drift is not None:
        return [
            *lines,
            "These are the weights of the unrewired network, which computes (1, 0). Its outputs differ from "
            f"the rewired network's by {result.drift:.2g} of their length on the example inputs.",
        ]
    kind = f", {result.arithmetic} arithmetic" if result.arithmetic else ""
    lines.append(f"Coefficients  ({result.alpha:g}, {result.beta:g}){kind}")
    why = "" if result.reason is None else f": {' '.join(result.reason.split())}"
    lines.append(f"Batch         {result.batch}{why}")
    equal = "bit for bit" if result.difference == 0 else f"up to {result.difference:.1g}, which is rounding"
    lines.append(f"It was run, and gives the network's outputs {equal}.")
    return lines
