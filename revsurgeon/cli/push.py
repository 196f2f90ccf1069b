"""`revsurgeon push`: a converted network to the Hub."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output

EXAMPLES = examples(
    (
        "To a repository of your own; revsurgeon.load('you/demo-dr2') takes it from there",
        "push demo-dr2 you/demo-dr2",
    ),
    ("Log in before, with a token that may write: hf auth login", "push demo-dr2 you/demo-dr2 --private"),
)


def push(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", show_default=False, help="A converted network's directory.")
    ],
    repository: Annotated[
        str,
        typer.Argument(metavar="ORG/NAME", show_default=False, help="On the Hub; made if it is not there."),
    ],
    private: options.Private = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Commit to this branch. Default: the main one.")
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the commit.")] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Upload a converted network to the Hub, in one commit.

    Its files are read and compared with its manifest first. The model card says what was done, and how the
    network is loaded from there.
    """
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        from revsurgeon.hub import push as upload

        address = upload(
            path,
            repository,
            private=private or None,
            revision=revision,
            message=message,
            create_pr=create_pr,
            progress=out.step,
        )
        program = f"import revsurgeon; model = revsurgeon.load({repository!r})"
        out.result(
            {"repository": repository, "url": address},
            f"{path} is at {address}",
            f"Load it:     python -c {shlex.quote(program)}",
            brief=address,
        )
