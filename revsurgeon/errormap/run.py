"""`revsurgeon.errmap`: from a checkpoint, a source or a network to a map."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from revsurgeon.anatomy.probe import ExampleInputs
from revsurgeon.errormap.error_map import ErrorMap
from revsurgeon.errormap.grid import make_axes
from revsurgeon.errormap.point import ARITHMETICS
from revsurgeon.errormap.results import Keeper, continued
from revsurgeon.errormap.subject import subject_of
from revsurgeon.errormap.sweep import Sweep
from revsurgeon.errormap.workers import measure_points
from revsurgeon.errors import UsageError
from revsurgeon.inference_mode import outside_inference_mode
from revsurgeon.recipes import Recipe


@outside_inference_mode
def errmap(
    path_or_model: str | Path | nn.Module,
    *,
    grid: str | int | None = None,
    alphas: str | Sequence[float] | None = None,
    betas: str | Sequence[float] | None = None,
    arithmetic: str = "float",
    example_inputs: ExampleInputs | None = None,
    inputs: Sequence[str] | None = None,
    real_input: str | Path | None = None,
    dtype: str | None = None,
    recipe: str | Path | Recipe | None = None,
    revision: str | None = None,
    random_weights: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    allow_python: bool = False,
    chain: str | None = None,
    jobs: int = 1,
    output: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    tell: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ErrorMap:
    """Measure how precise float reversal is, and how far from the pretrained network, over alpha and beta.

    At every point: the error of reversible gradients against stored ones (of all parameters and of each
    chain), the distance of the output from the pretrained network's, and what exact arithmetic would keep.
    The gradients are of a fixed random projection of the output, in evaluation mode. This is Figure 3 of
    Dr2Net (Zhao et al., CVPR 2024) for one's own network.

    Args:
        path_or_model: an artifact; a source as `convert` takes it, which is rewired in memory; or a network
            that was rewired, which is left as it was found.
        grid: points an axis from 0 to 1, as 11 or "11x21" (alphas x betas).
        alphas, betas: values in place of the grid's: numbers, or text such as "0.9,1" or "0:1:0.05".
        arithmetic: "float", "exact" or "both".
        example_inputs: of a network that is given; needed if it does not know them.
        inputs: ``NAME=SHAPE[:DTYPE]`` for other shapes; the first dimension is the batch.
        real_input: an .npy or .pt file with a batch, in place of random inputs.
        dtype: cast weights and inputs: "float32", "float64", "float16" or "bfloat16".
        recipe, revision, random_weights, allow_pickle, trust_remote_code: of a source, as in `convert`.
        allow_python: call the factory of user code that an artifact names.
        chain: one that is to be looked at; a network without it is refused before anything is measured.
        jobs: processes to measure in, one torch thread each. With more than one, a script needs its
            ``if __name__ == "__main__":``, as always with spawned processes.
        output: write OUTPUT.json and OUTPUT.csv, as points come; None writes nothing.
        resume: go on with the map in OUTPUT.json.
        force: replace it.
        tell: is told what happens next, in words.
        progress: is told how many points are done, of how many.

    Returns:
        The map, with ``.grid``, ``.recommended``, ``.to_dict()`` and ``.plot(path)``.

    Raises:
        UsageError: an argument that makes no sense, inputs that the network does not take, or a map in
            OUTPUT.json of something else.
        UnsupportedModelError: the network was not rewired, or cannot be.
        RevsurgeonError: another of its kinds, by what went wrong.

    Example:
        >>> import revsurgeon
        >>> found = revsurgeon.errmap("demo", grid=2)
        >>> found.grid[0.0, 1.0].errors["float"].whole.relative < 1e-5
        True
    """
    say = tell or (lambda text: None)
    axes = make_axes(grid, alphas, betas)
    if arithmetic not in (*ARITHMETICS, "both"):
        raise UsageError(f"arithmetic {arithmetic!r} is not float, exact or both.")
    arithmetics = ARITHMETICS if arithmetic == "both" else (arithmetic,)
    if not isinstance(jobs, int) or jobs < 1:
        raise UsageError(f"jobs = {jobs}: at least one process has to measure.")
    if output is not None and not Path(output).parent.is_dir():
        raise UsageError("the directory to write into is not there.", where=str(Path(output).parent))
    say("Loading the network")
    subject = subject_of(
        path_or_model,
        example_inputs=example_inputs,
        inputs=inputs,
        real_input=real_input,
        dtype=dtype,
        recipe=recipe,
        revision=revision,
        random_weights=random_weights,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        allow_python=allow_python,
    )
    if not any(p.requires_grad for p in subject.model.parameters()):
        raise UsageError(f"no parameter of {subject.name} needs a gradient, so there is none to measure.")
    configuration = {
        **subject.description(),
        "alphas": list(axes.alphas),
        "betas": list(axes.betas),
        "arithmetics": list(arithmetics),
    }
    found = ErrorMap(configuration)
    found.check("drift", chain=chain)
    if output is not None:
        found = continued(Path(output), configuration, resume=resume, force=force)
    keeper = Keeper(None if output is None else Path(output))
    keeper.keep(found, now=True)  # what cannot be written is found out before anything is measured
    missing, total = found.missing, len(axes.points)
    say(f"Measuring {len(missing)} of {total} points")
    report = progress or (lambda done, of: None)
    report(total - len(missing), total)
    try:
        sweep = Sweep.of(subject.model, subject.arguments, arithmetics)
        with contextlib.closing(measure_points(sweep, missing, jobs)) as points:
            for point in points:
                found.grid[point.alpha, point.beta] = point
                keeper.keep(found)
                report(len(found.grid), total)
        chosen = found.recommended
        if chosen is not None and chosen.route.arithmetic == "exact" and "exact" not in arithmetics:
            found.exact_failure = sweep.exact_fails(*chosen.route.start)
    finally:
        keeper.keep(found, now=True)
        report(len(found.grid), total)  # what was kept, also of a map that was stopped
    return found
