"""`revsurgeon verify`: proof that a converted network is what it says, for people and for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from revsurgeon.checks import CHECKS
from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output
from revsurgeon.files import check_target, write_text

if TYPE_CHECKING:
    from revsurgeon.checks import Report

EXAMPLES = examples(
    ("Convert the network that travels with the package, then prove it", "convert demo --mode dr2"),
    ("(exit code 0: it passed; 3: a check failed)", "verify demo-dr2"),
    ("A weight file is enough, and one check may be", "verify demo-dr2/model.safetensors --only equivalence"),
    (
        "In CI: a file for the server, one for the pull request",
        "verify demo-dr2 --offline --seeds 1 --quiet --junit verify.xml --markdown verify.md",
    ),
    ("Write the result into the manifest and the model card", "verify demo-dr2 --only integrity --stamp"),
    ("Larger than the memory: block by block", "verify demo-dr2 --stream --only reversibility"),
)

_CHECK_LIST = "; ".join(f"{name}: {says}" for name, says in CHECKS.items())


def verify(
    path: options.Artifact,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK", help=f"Run only this check. Repeatable. {_CHECK_LIST}."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not look for the source; leaves provenance out.")
    ] = False,
    rtol: Annotated[
        float | None,
        typer.Option(
            metavar="ERROR",
            help="Relative error to allow in recovered inputs and gradients. Default: derived; 0 in exact "
            "arithmetic. Overrides the recipe.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, show_default=False, help="Random inputs to take. Default: 2, or the recipe's."
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        typer.Option(
            metavar="DEVICE", help="auto, cpu, cuda or mps. auto takes an accelerator, if there is one."
        ),
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "float64", "float16", "bfloat16"] | None,
        typer.Option(metavar="DTYPE", help="Cast the weights first: float32, float64, float16 or bfloat16."),
    ] = None,
    inputs: options.Inputs = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Hold one block's weights at a time, for weights larger than the memory."
        ),
    ] = False,
    stamp: Annotated[
        bool, typer.Option("--stamp", help="Write the result into the artifact's manifest and model card.")
    ] = False,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the report as JUnit XML, for CI servers.")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the report as Markdown, for a pull-request comment."),
    ] = None,
    allow_python: options.AllowPython = False,
    allow_pickle: options.AllowPickle = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Prove that a converted network is what its manifest says, and that its gradients are right.

    Every check has a value, a threshold and the place where it was worst. When one fails, the report
    names the first segment where it goes wrong, and the exit code is 3.
    """
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        _check(only, stamp, path)
        for file in (junit, markdown):
            check_target(file)
        out.step("Starting torch")
        from revsurgeon.checks import verify as run_checks

        report = run_checks(
            path,
            offline=offline,
            rtol=rtol,
            device=device,
            dtype=dtype,
            inputs=inputs or None,
            seeds=seeds,
            only=only or None,
            stream=stream,
            allow_python=allow_python,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            progress=out.step,
        )
        _write(report, junit, markdown)
        if stamp:
            from revsurgeon.checks.stamp import stamp as write_stamp

            out.step(f"Writing the result into {path}")
            write_stamp(Path(path), report)
        from revsurgeon.cli.check_table import summary

        out.result(
            report.to_dict(), *summary(report, out.width), brief="passed" if report.passed else "failed"
        )
    if not report.passed:
        raise SystemExit(3)  # see revsurgeon/errors.py; the report has been written, so this is no error


def _check(only: list[str] | None, stamp: bool, path: str) -> None:
    """Refuse what makes no sense before torch is imported or anything is downloaded."""
    from revsurgeon.errors import UsageError

    for name in only or ():
        if name not in CHECKS:
            raise UsageError(f"there is no check {name!r}.", hint=f"The checks are {', '.join(CHECKS)}.")
    if stamp and not Path(path).exists():
        raise UsageError(
            "--stamp writes into an artifact on this machine.", where=path, hint="Download it first."
        )


def _write(report: Report, junit: Path | None, markdown: Path | None) -> None:
    from revsurgeon.checks import formats

    for file, render in ((junit, formats.junit), (markdown, formats.markdown)):
        if file is not None:
            write_text(file, render(report))
