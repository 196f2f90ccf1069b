"""From a source to an artifact: a pretrained network is rewired, checked and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from revsurgeon.artifact import byte_limit, check_output
from revsurgeon.checkpoints import write_network
from revsurgeon.checks.seal import NOT_VERIFIED, RECORD
from revsurgeon.errors import UsageError
from revsurgeon.inference_mode import outside_inference_mode
from revsurgeon.origin import Origin
from revsurgeon.recipes import Recipe, load_recipe
from revsurgeon.recipes.overrides import overridden
from revsurgeon.reversible.coefficients import get_coefficients, some_chains
from revsurgeon.rewiring import rewire_with_checks
from revsurgeon.sources import resolve
from revsurgeon.sources.batch_file import read_batch
from revsurgeon.sources.inputs import InputSpec

DTYPES = ("float32", "float64", "float16", "bfloat16")


@outside_inference_mode
def convert(
    source: str,
    mode: str = "dr2",
    *,
    output: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    revision: str | None = None,
    random_weights: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    arithmetic: str | None = None,
    granularity: str | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    merge: str | None = None,
    start: tuple[float, float] | Literal["auto"] | None = None,
    max_drift: float | None = None,
    inputs: Sequence[str] | None = None,
    real_input: str | Path | None = None,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    force: bool = False,
    verify: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Rewire a pretrained network and write it as a reversible checkpoint.

    The weights are written under the names, and as the bytes, of the source's own state dict.

    Args:
        source: ``org/name[@revision]``, ``timm:name``, ``torchvision:name``, ``transformers:type``, a path,
            ``python:module:factory`` or ``demo``.
        mode: "dr2" or "re2".
        output: the directory to make; None takes ``<the source's short name>-<mode>`` here.
        recipe: a preset's name, a YAML file or a `Recipe`; None takes the mode's default.
        revision: branch, tag or commit of a Hub repository.
        random_weights: draw the weights instead of loading them, the same at every run.
        allow_pickle: also read ``.bin`` and ``.pth`` files, as tensors only.
        trust_remote_code: run Python code that the source ships.
        token: for the Hub; None takes the one that you are logged in with.
        cache_dir: where downloads are kept.
        arithmetic, granularity, include, exclude, merge: replace the recipe's.
        start: (alpha, beta), or "auto" to search for it; replaces the recipe's.
        max_drift: how far the output at a searched start may be from the source's; replaces the recipe's.
        inputs: ``NAME=SHAPE[:DTYPE]`` for example inputs other than the config tells.
        real_input: an .npy or .pt file with a batch to measure on, in place of random example inputs.
        dtype: cast floating weights on the way: "float32", "float64", "float16" or "bfloat16".
        max_shard_size: bytes a weight file, as a number or as "5GB".
        force: replace an artifact that is there.
        verify: check the network before it is written, with the quick part of `revsurgeon.verify`, and write
            nothing if it fails; False leaves "not verified" in the manifest.
        progress: is told what happens next, in words.

    Returns:
        The artifact's directory.

    Raises:
        RevsurgeonError: one of its kinds, by what went wrong; nothing is written then.
    """
    tell = progress or (lambda text: None)
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, mode)
    chosen = overridden(
        chosen,
        arithmetic=arithmetic,
        granularity=granularity,
        include=include,
        exclude=exclude,
        merge=merge,
        start=start,
        max_drift=max_drift,
    )
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    byte_limit(max_shard_size)
    InputSpec().override(inputs or ())  # their form; which of them the network takes is known later
    if output is not None:
        check_output(output, force=force)
    tell(f"Looking up {source}")
    found = resolve(
        source,
        revision=revision,
        random_weights=random_weights,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        token=token,
        cache_dir=cache_dir,
    )
    target = Path(output) if output is not None else Path(f"{found.name}-{chosen.mode}")
    check_output(target, force=force)
    tell("Loading the weights" if not random_weights else "Drawing random weights")
    model = found.module()
    for note in found.notes:
        tell(f"Note: {note}")
    spec = found.inputs.override(inputs or ())
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
        spec = spec.with_float_dtype(dtype)
    examples = spec.example(batch_size=2) if real_input is None else read_batch(real_input, spec)
    tell("Finding residual modules" if not verify else "Finding residual modules, rewiring and checking")
    _, measured = rewire_with_checks(model, examples, chosen, check=verify)
    checks: dict[str, Any] = {"self_check": NOT_VERIFIED, RECORD: NOT_VERIFIED}
    if measured is not None:
        from revsurgeon.checks.quick import check_before_writing

        tell("Checking what was made")
        record = check_before_writing(model, examples, chosen)  # which may turn to exact arithmetic
        arithmetic = some_chains(model)[0].arithmetic
        checks = {"self_check": {**measured.to_dict(), "arithmetic": arithmetic}, RECORD: record}
    origin = Origin(
        source=found.provenance.to_dict(),
        build=dict(found.build),
        config=None if found.config is None else found.config.decode(),
        inputs=spec.to_dict(),
        recipe=chosen.starting_at(*get_coefficients(model)),  # the start that was found, so that it repeats
        checks=checks,
    )
    tell(f"Writing {target}")
    return write_network(model, origin, target, force=force, max_shard_size=max_shard_size)
