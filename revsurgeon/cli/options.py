"""Every option and argument of the command line, declared once, and how examples are shown in help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        show_default=False,
        help="The network: ORG/NAME[@REVISION] on the Hub, timm:NAME, torchvision:NAME, transformers:TYPE, "
        "a local directory or file, python:MODULE:FACTORY, or demo.",
    ),
]
Revision = Annotated[
    str | None, typer.Option(metavar="REF", help="Branch, tag or commit of a Hub repository.")
]
RandomWeights = Annotated[
    bool,
    typer.Option("--random-weights", help="The architecture with random weights; downloads no weights."),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Also read .bin, .pt and .pth files, as tensors only, never as code."
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that the source ships. Read that code first."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=SHAPE[:DTYPE]",
        help="Example input instead of the one derived from the source's config, as in "
        "pixel_values=1x16x3x224x224 or ids=1x128:int64. The first dimension is the batch. Repeatable.",
    ),
]
Mode = Annotated[
    Literal["dr2", "re2"] | None,
    typer.Option(
        metavar="MODE",
        help="dr2 starts near the pretrained network; re2 is Re2TAL's hard switch. "
        "Default: dr2, or the recipe's.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="What to rewire, with which coefficients and schedule. Default: dr2-hold or re2, by mode.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Directory to write. Default: NAME-MODE in the working directory.",
    ),
]
Granularity = Annotated[
    Literal["segment", "block"] | None,
    typer.Option(
        metavar="UNIT",
        help="segment: one reversible step a residual branch. block: one a whole block. "
        "Overrides the recipe.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Rewire only blocks at these paths, as in 'blocks.*'. Repeatable."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave blocks at these paths alone. Repeatable."),
]
Merge = Annotated[
    Literal["auto", "normalized", "last"] | None,
    typer.Option(
        metavar="WAY",
        help="What becomes of the two streams at a chain's end: normalized, last, or auto. "
        "Overrides the recipe.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="ALPHA,BETA|auto",
        help="Where finetuning starts. auto: the largest beta of .1, .05, .02, .01, .005 on alpha = 1 - beta "
        "that keeps the output near the source's. Overrides the recipe.",
    ),
]
MaxDrift = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="How near --start auto keeps the output, as a share of its length: 0.05 is 5 %. "
        "Overrides the recipe.",
    ),
]
RealInput = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Measure on this batch, an .npy or .pt file (tensors only), instead of random inputs.",
    ),
]
Arithmetic = Annotated[
    Literal["auto", "float", "exact"] | None,
    typer.Option(
        metavar="KIND",
        help="Numbers of the streams: float, exact (a few bits more, nothing lost), or auto. "
        "Overrides the recipe.",
    ),
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(metavar="DTYPE", help="Cast the weights to float32, float16 or bfloat16 on the way."),
]
MaxShardSize = Annotated[
    str, typer.Option(metavar="SIZE", help="Split the weights into files of at most this size.")
]
AllowPython = Annotated[
    bool,
    typer.Option(
        "--allow-python", help="Call the factory of user code that the artifact's network comes from."
    ),
]
Artifact = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        show_default=False,
        help="A converted network: its directory, its .safetensors file, or its Hub id, ORG/NAME.",
    ),
]
Network = Annotated[
    str,
    typer.Argument(
        metavar="PATH|SOURCE",
        show_default=False,
        help="A converted network: its directory or its .safetensors file. Or any source that convert "
        "takes (timm:NAME, demo, ...), which is rewired in memory.",
    ),
]
Amp = Annotated[
    str, typer.Option(metavar="DTYPE", help="Autocast while the network runs: bf16, fp16 or none.")
]
Accumulate = Annotated[
    int, typer.Option(metavar="N", help="Forward and backward passes before the optimizer's step.")
]
Strategy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Only this way to train: stored, checkpoint, float, exact, chunked or re2. Repeatable.",
    ),
]
ReplaceFile = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output directory if it exists.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Do all of it that needs no weights, and write nothing.")
]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Skip the check that the rewired network equals the source.")
]
All = Annotated[
    bool, typer.Option("--all", help="List every block and everything left alone, nothing summarised.")
]
Code = Annotated[bool, typer.Option("--code", help="Print the function that each segment runs.")]

PushToHub = Annotated[
    str | None,
    typer.Option(
        metavar="ORG/NAME", show_default=False, help="Upload the result to the Hub as well, as push does."
    ),
]
Private = Annotated[
    bool, typer.Option("--private", help="Make the Hub repository private, if it has to be made.")
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, and nothing else there.")
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, and only the one line of result that a script needs."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and all warnings.")]


def examples(*pairs: tuple[str, str]) -> str:
    """Return the end of a command's help: pairs of a comment and a command line without `revsurgeon`.

    The backspace is Typer's mark for a paragraph whose line breaks are kept.
    """
    lines = [line for comment, command in pairs for line in (f"# {comment}", f"$ revsurgeon {command}")]
    return "Examples:\n\n\b\n" + "\n".join(lines)


def help_when_alone(context: typer.Context) -> None:
    """Show the help of a group that was called without a command, and leave as for any bad usage."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)
