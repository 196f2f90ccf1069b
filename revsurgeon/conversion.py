"""From a source to an artifact, from an artifact to a network that trains, and back."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from revsurgeon.artifact import (
    ChainRecord,
    Manifest,
    TensorRecord,
    byte_limit,
    check_output,
    model_card,
    read_manifest,
    read_tensors,
    write_artifact,
)
from revsurgeon.artifact.read import are_changed
from revsurgeon.checks.seal import RECORD, seal_of_structure
from revsurgeon.errors import ArtifactError, RevsurgeonError, UnsupportedModelError, UsageError
from revsurgeon.recipes import Coefficients, Recipe, load_recipe
from revsurgeon.recipes.overrides import overridden
from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.coefficients import get_coefficients, some_chains
from revsurgeon.reversible.sharding import has_sharded_parts
from revsurgeon.rewiring import ChainSpec, attach, detach, rewire_with_checks
from revsurgeon.rewiring.rewire import plan_of, specs_of_rewired
from revsurgeon.rewiring.wrappers import unwrapped
from revsurgeon.sources import build_architecture, resolve
from revsurgeon.sources.batch_file import read_batch
from revsurgeon.sources.inputs import InputSpec

_ORIGIN = "_revsurgeon_origin"
"""Attribute of a rewired network that says where it came from."""

DTYPES = ("float32", "float64", "float16", "bfloat16")

NOT_VERIFIED = "not verified"


@dataclass(frozen=True)
class Origin:
    """What an artifact says about a network besides its chains; kept on the network for `save`."""

    source: Mapping[str, Any]
    build: Mapping[str, Any]
    config: str | None
    inputs: Mapping[str, Any]
    recipe: Recipe
    checks: Mapping[str, Any]
    tensors: Mapping[str, TensorRecord] = field(default_factory=dict)
    """What the weights were when they were loaded; `save` tells by it whether they were changed."""


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
    _, checks = rewire_with_checks(model, examples, chosen, check=verify)
    origin = Origin(
        source=found.provenance.to_dict(),
        build=dict(found.build),
        config=None if found.config is None else found.config.decode(),
        inputs=spec.to_dict(),
        recipe=chosen.starting_at(
            *get_coefficients(model)
        ),  # with the start that was found, so that it repeats
        checks={"self_check": checks.to_dict()} if checks else {"self_check": NOT_VERIFIED},
    )
    if verify:
        from revsurgeon.checks.quick import check_before_writing

        tell("Checking what was made")
        record = check_before_writing(model, examples, chosen)
        measured = checks.to_dict() if checks else {}
        measured["arithmetic"] = some_chains(model)[0].arithmetic
        origin = replace(origin, checks={"self_check": measured, RECORD: record})
    else:
        origin = replace(origin, checks={**origin.checks, RECORD: NOT_VERIFIED})
    tell(f"Writing {target}")
    return _write(model, origin, target, force=force, max_shard_size=max_shard_size)


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    into: nn.Module | None = None,
    arithmetic: str | None = None,
    allow_python: bool = False,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> nn.Module:
    """Load a converted checkpoint as a network that trains reversibly.

    Args:
        path: the artifact's directory, or its single weight file, or its Hub id ``org/name[@revision]``.
        device: where to put it.
        into: the unrewired network to load into, for an artifact that does not say how to build one.
        arithmetic: "float" or "exact", in place of the artifact's.
        allow_python: call the factory of user code that the artifact names.
        trust_remote_code: run code that the source shipped.
        token: for the Hub; None takes the one that you are logged in with.
        cache_dir: where downloads are kept.

    Returns:
        The network in evaluation mode, at the coefficients that it was saved with. It is the class that the
        source's own library makes.

    Raises:
        ArtifactError: a file that is missing, damaged or does not agree with its manifest.
        SourceError: the architecture cannot be built.
        HubError: the Hub did not deliver.
    """
    from revsurgeon.hub import artifact_path
    from revsurgeon.sources.construction import take_weights

    if arithmetic not in (None, "float", "exact"):
        raise UsageError(f"arithmetic {arithmetic!r} is not float or exact.")
    path = artifact_path(path, token=token, cache_dir=cache_dir)
    manifest = read_manifest(path)
    tensors = read_tensors(path, manifest)
    if into is None:
        if not manifest.build:
            raise ArtifactError(
                "the artifact does not say how to build its network.",
                where=str(path),
                hint="Build it yourself and pass it: revsurgeon.load(path, into=network).",
            )
        config = None if manifest.config is None else manifest.config.encode()
        build: Any = dict(manifest.build)
        into = build_architecture(
            build, config, allow_python=allow_python, trust_remote_code=trust_remote_code
        )
    attached = attach(
        into, [spec_of(chain) for chain in manifest.chains], granularity=manifest.recipe.granularity
    )
    try:
        _check_fit(into, tensors)
        take_weights(into, tensors)
    except RevsurgeonError:
        detach(into)
        raise
    for chain in attached:
        set_as_recorded(chain, manifest)
        chain.arithmetic = arithmetic or manifest.arithmetic
    into.__dict__[_ORIGIN] = Origin(
        manifest.source,
        manifest.build,
        manifest.config,
        manifest.inputs,
        manifest.recipe,
        manifest.checks,
        manifest.tensors,
    )
    return into.eval().to(device)


def save(
    model: nn.Module, path: str | Path, *, force: bool = False, max_shard_size: int | str = "5GB"
) -> Path:
    """Write a rewired network as an artifact, with its present weights, coefficients and schedule state.

    Args:
        model: what `load` returned or `rewire` made, finetuned or not, also wrapped in
            `DistributedDataParallel` or by `torch.compile`.
        path: the directory to make.
        force: replace an artifact that is there.
        max_shard_size: bytes a weight file, as a number or as "5GB".

    Returns:
        The directory. For a network that `rewire` made, `load` needs ``into=`` the unrewired network.

    Raises:
        UnsupportedModelError: it was not rewired, or it is sharded (FSDP2).
        ArtifactError: the output cannot be written.
    """
    check_output(path, force=force)
    model = unwrapped(model)
    if has_sharded_parts(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is sharded: no process has all of its weights.",
            hint="Gather them (torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "full_state_dict=True), and save a network that is not sharded and has loaded them.",
        )
    origin = origin_of(model)
    if origin is None:
        origin = _origin_of_rewired(model)
    elif are_changed(model.state_dict(), origin.tensors):
        # What was checked, and what the weights came from, holds of other weights.
        changed = {RECORD: f"{NOT_VERIFIED} since the weights were changed"}
        origin = replace(origin, source={**origin.source, "finetuned": True}, checks=changed)
    return _write(model, origin, Path(path), force=force, max_shard_size=max_shard_size)


def set_as_recorded(chain: Chain, manifest: Manifest) -> None:
    """Put a freshly attached chain where a manifest says that it was."""
    now = manifest.coefficients
    chain.set(now.alpha, now.beta)
    chain.arithmetic = manifest.arithmetic
    chain.plan = plan_of(manifest.recipe, (now.alpha, now.beta))
    chain.state = dict(manifest.schedule_state) if manifest.schedule_state is not None else None


def origin_of(model: nn.Module) -> Origin | None:
    """Where a network came from that `load` returned; None for any other."""
    origin: Origin | None = model.__dict__.get(_ORIGIN)
    return origin


def _check_fit(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check names and shapes before a single tensor is taken, so that a network that is refused is unchanged.

    Raises:
        ArtifactError: some do not fit; it names them.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    lines = [f"{name}: not in the artifact" for name in wanted.keys() - given.keys()]
    lines += [f"{name}: not in the network" for name in given.keys() - wanted.keys()]
    lines += [
        f"{name}: shape {list(given[name])} in the artifact, {list(shape)} in the network"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    if lines:
        raise ArtifactError(
            f"the weights do not fit {type(network).__name__}.",
            where="\n".join(sorted(lines)[:20] + [f"and {len(lines) - 20} more"] * (len(lines) > 20)),
            hint="The network's library may have changed since; the manifest names the version that it was.",
        )


def _origin_of_rewired(model: nn.Module) -> Origin:
    first = some_chains(model)[0]
    plan = dict(first.plan or {"start": (first.alpha, first.beta)})
    start, end = plan.pop("start"), plan.pop("end", None)
    recipe = Recipe.model_validate(
        {
            "name": "rewired",
            "mode": "re2" if start == (0.0, 1.0) else "dr2",
            "start": {"alpha": start[0], "beta": start[1]},
            "end": None if end is None else {"alpha": end[0], "beta": end[1]},
            "schedule": plan or None,
            "granularity": model_granularity(model),
        }
    )
    source = {"spec": type(model).__name__, "kind": "module", "weights": "unknown"}
    return Origin(source, {}, None, {}, recipe, {})


def model_granularity(model: nn.Module) -> str:
    """The granularity that a rewired network was cut with."""
    forwards = (getattr(m.__dict__.get("forward"), "granularity", None) for m in model.modules())
    return next(g for g in forwards if g is not None)


def _write(model: nn.Module, origin: Origin, target: Path, *, force: bool, max_shard_size: int | str) -> Path:
    chains = some_chains(model)
    alpha, beta = get_coefficients(model)
    manifest = Manifest(
        revsurgeon=importlib.metadata.version("revsurgeon"),
        source=dict(origin.source),
        build=dict(origin.build),
        config=origin.config,
        inputs=dict(origin.inputs),
        recipe=origin.recipe,
        chains=[_record(spec) for spec in specs_of_rewired(model)],
        coefficients=Coefficients(alpha=alpha, beta=beta),
        arithmetic=chains[0].arithmetic,  # type: ignore[arg-type]
        schedule_state=chains[0].state,
        checks=dict(origin.checks),
    )
    manifest = _sealed(manifest)
    return write_artifact(
        target,
        model.state_dict(),
        manifest,
        config=None if origin.config is None else origin.config.encode(),
        card=model_card(manifest, target.resolve().name),
        force=force,
        max_shard_size=max_shard_size,
    )


def _sealed(manifest: Manifest) -> Manifest:
    """Note in the record of a check what it was of; a record that was of something else is dropped."""
    record = manifest.checks.get(RECORD)
    if not isinstance(record, dict):
        return manifest
    now = seal_of_structure(manifest)
    if record.get("of", now) != now:
        record = f"{NOT_VERIFIED} since the coefficients or the chains were changed"
    else:
        record = {**record, "of": now}
    return manifest.model_copy(update={"checks": {**manifest.checks, RECORD: record}})


def _record(spec: ChainSpec) -> ChainRecord:
    data = asdict(spec)
    return ChainRecord.model_validate({k: list(v) if isinstance(v, tuple) else v for k, v in data.items()})


def spec_of(record: ChainRecord) -> ChainSpec:
    """A manifest's record of a chain, as what a network is rewired by."""
    fields = record.model_dump().items()
    data: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields}
    return ChainSpec(**data)


__all__ = ["convert", "load", "save"]
