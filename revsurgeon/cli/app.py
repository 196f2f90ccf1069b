"""The Typer app: which commands there are, and how a run of one becomes an exit code."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from revsurgeon.cli import bench, convert, demo, errmap, export, inspect, memory, push, recipes, verify
from revsurgeon.cli.errors import INTERRUPTED
from revsurgeon.cli.options import examples, help_when_alone
from revsurgeon.cli.output import Output

_EXAMPLES = examples(
    ("The network that travels with the package: convert it, no download needed", "convert demo --mode dr2"),
    ("What could be rewired in a network, and what not", "inspect timm:vit_tiny_patch16_224"),
    ("A guided tour of about half a minute", "demo"),
)

# Plain help: Typer's panels import a good part of rich, which alone takes 0.2 s of the 0.4 s that
# --help may take. The help fills the terminal, but no line gets too long to read.
app = typer.Typer(
    name="revsurgeon",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=_EXAMPLES,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": min(shutil.get_terminal_size((100, 24)).columns, 100),
    },
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # here, because it takes as long to import as the rest of this file

        try:
            number = metadata.version("revsurgeon")
        except metadata.PackageNotFoundError:
            number = "(not installed)"
        typer.echo(f"revsurgeon {number}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Rewire a pretrained network into a reversible one that starts out equal to it.

    The converted network is finetuned as before, in a fraction of the memory: activations inside its
    chains are rebuilt in the backward pass instead of being stored.
    """
    help_when_alone(context)


app.command(epilog=convert.EXAMPLES)(convert.convert)
app.command(epilog=inspect.EXAMPLES)(inspect.inspect)
app.command(epilog=verify.EXAMPLES)(verify.verify)
app.command(epilog=errmap.EXAMPLES)(errmap.errmap)
app.command(epilog=memory.EXAMPLES)(memory.memory)
app.command(epilog=bench.EXAMPLES)(bench.bench)
app.command(epilog=push.EXAMPLES)(push.push)
app.command(epilog=export.EXAMPLES)(export.export)
app.command(epilog=demo.EXAMPLES)(demo.demo)
app.add_typer(recipes.app, name="recipes")


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; everything that can go wrong is reported."""
    output = Output(
        as_json="--json" in arguments,
        quiet=not {"-q", "--quiet"}.isdisjoint(arguments),
        debug="--debug" in arguments,
    )
    _calm_libraries(output)
    try:
        # Returns the code of a typer.Exit, and None when the command simply ended.
        code = app(args=list(arguments), prog_name="revsurgeon", standalone_mode=False)
    except SystemExit as left:  # what fails inside a command has been reported there
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except (typer.TyperException, typer.Abort, KeyboardInterrupt, BrokenPipeError) as error:
        return output.fail(error)
    if code == INTERRUPTED:  # Ctrl-C while Typer itself was at work
        return output.fail(KeyboardInterrupt())
    return code if isinstance(code, int) else 0


def _calm_libraries(output: Output) -> None:
    """Set what libraries read from the environment when they are first imported."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a sign gets a "?"
    if output.quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not output.debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
