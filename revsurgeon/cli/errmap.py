"""`revsurgeon errmap`: where float gradients are precise and how far the output drifts, as a map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output
from revsurgeon.cli.progress import progress_bar
from revsurgeon.files import check_target, write_text

if TYPE_CHECKING:
    from revsurgeon.errormap import ErrorMap

EXAMPLES = examples(
    ("The network that travels with the package; writes demo-errmap.png, .json and .csv", "errmap demo"),
    ("Both arithmetics, on fewer points", "errmap demo --grid 3 --arithmetic both --output both"),
    ("A converted network; where it should start and end, as a recipe", "convert demo --output demo-dr2"),
    ("(--resume goes on with a map that was stopped)", "errmap demo-dr2 --grid 5 --write-recipe best.yaml"),
    ("The recommendation is used", "convert demo --recipe best.yaml --output demo-best"),
    ("Close to the pretrained network, where a grid is too coarse", "errmap demo --output near --alpha "
     "0.9,0.95,0.99 --beta 0.01,0.05,0.1"),
)  # fmt: skip

_SUFFIXES = (".json", ".csv", ".png", ".svg", ".pdf")


def errmap(
    source: options.Network,
    grid: Annotated[
        str | None,
        typer.Option(metavar="N|AxB", help="Points an axis, evenly from 0 to 1. Default: 11."),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(metavar="VALUES", help="Alphas instead: 0.9,0.95,1 or FROM:TO:STEP, as in 0:1:0.05."),
    ] = None,
    beta: Annotated[
        str | None, typer.Option(metavar="VALUES", help="Betas instead, in the same form.")
    ] = None,
    arithmetic: Annotated[
        Literal["float", "exact", "both"],
        typer.Option(metavar="KIND", help="In which gradients are reversed: float, exact or both."),
    ] = "float",
    metric: Annotated[
        Literal["relative", "cosine", "max-abs", "mean-abs", "mse"],
        typer.Option(
            metavar="NAME",
            help="What is shown of the gradients: relative, cosine, max-abs, mean-abs or mse. "
            "The files have all of them.",
        ),
    ] = "relative",
    chain: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show only the gradients of this chain's parameters.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float64", "float16", "bfloat16"] | None,
        typer.Option(metavar="DTYPE", help="Cast the weights first: float32, float64, float16 or bfloat16."),
    ] = None,
    inputs: options.Inputs = None,
    real_input: options.RealInput = None,
    recipe: options.Recipe = None,
    revision: options.Revision = None,
    random_weights: options.RandomWeights = False,
    allow_pickle: options.AllowPickle = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_python: options.AllowPython = False,
    jobs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Processes to measure in, one thread each.")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Write PATH.json, PATH.csv and the picture PATH.png (or end PATH in .svg or .pdf). "
            "Default: NAME-errmap here.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The picture, as .png, .svg or .pdf, in place of PATH.png."),
    ] = None,
    write_recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the recommendation as a recipe for convert.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the map in PATH.json, which was stopped.")
    ] = False,
    force: options.ReplaceFile = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Map the gradient error of float reversal, and the drift, over alpha and beta.

    At every point: how far reversible gradients are from stored ones, how far the output is from the
    pretrained network's, and what exact arithmetic would keep. From that, a start, an end, a path and an
    arithmetic are recommended. Ctrl-C keeps what is done.
    """
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        from revsurgeon.errormap.grid import make_axes

        make_axes(grid, alpha, beta)  # what is wrong with them is told before torch is imported
        stem, picture = _files(source, output, plot)
        check_target(write_recipe, force=force)
        out.step("Starting torch")
        import revsurgeon as rs

        done: list[int] = [0, 0]
        with progress_bar(out) as advance:

            def report(finished: int, total: int) -> None:
                done[:] = [finished, total]
                advance(finished, total)

            try:
                found = rs.errmap(
                    source,
                    grid=grid,
                    alphas=alpha,
                    betas=beta,
                    arithmetic=arithmetic,
                    dtype=dtype,
                    inputs=inputs or None,
                    real_input=real_input,
                    recipe=recipe,
                    revision=revision,
                    random_weights=random_weights,
                    allow_pickle=allow_pickle,
                    trust_remote_code=trust_remote_code,
                    allow_python=allow_python,
                    chain=chain,
                    jobs=jobs,
                    output=stem,
                    resume=resume,
                    force=force,
                    tell=out.step,
                    progress=report,
                )
            except KeyboardInterrupt:
                if done[0]:
                    out.step(f"{done[0]} of {done[1]} points are in {stem}.json; go on with --resume")
                raise
        shown = metric.replace("-", "_")
        out.step("Drawing")
        found.plot(picture, metric=shown, chain=chain)
        files = {"json": f"{stem}.json", "csv": f"{stem}.csv", "plot": str(picture)}
        if write_recipe is not None:
            write_text(write_recipe, _recipe_text(found))
            files["recipe"] = str(write_recipe)
        out.result(
            {"files": files, **found.to_dict()},
            *_for_people(out, found, shown, chain, files),
            brief=files["json"],
        )


def _for_people(
    out: Output, found: ErrorMap, metric: str, chain: str | None, files: dict[str, str]
) -> list[Any]:
    from revsurgeon.cli.errmap_cells import maps
    from revsurgeon.cli.errmap_words import recommendation

    if not out.for_people:
        return []
    return [
        *maps(found, metric, chain, out.width, coloured=out.on_terminal),
        "",
        *recommendation(found),
        "",
        *(f"{what + ':':<8}{file}" for what, file in files.items()),
    ]


def _files(source: str, output: Path | None, plot: Path | None) -> tuple[Path, Path]:
    """Return the results' path without suffix, and the picture's."""
    from revsurgeon.errormap.pictures import check_picture

    if output is None:
        last = source.rstrip("/").partition("@")[0].replace(":", "/").rsplit("/", 1)[-1]
        output = Path(f"{last.removesuffix('.safetensors')}-errmap")
    suffix = output.suffix.lower()
    stem = output.with_suffix("") if suffix in _SUFFIXES else output
    picture = plot or (output if suffix in _SUFFIXES[2:] else stem.with_name(f"{stem.name}.png"))
    check_picture(picture)
    check_target(stem.with_name(f"{stem.name}.json"))
    return stem, picture


def _recipe_text(found: ErrorMap) -> str:
    from revsurgeon.cli.errmap_words import recommendation

    comment = "".join(f"# {line}\n" for line in recommendation(found))
    return f"# From the error map of {found.name}.\n{comment}{found.recipe().to_yaml()}"
