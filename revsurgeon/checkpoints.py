"""From an artifact to a network that trains, and back."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revsurgeon.artifact import (
    ChainRecord,
    Manifest,
    check_output,
    model_card,
    read_manifest,
    read_tensors,
    write_artifact,
)
from revsurgeon.artifact.read import are_changed
from revsurgeon.checks.seal import NOT_VERIFIED, RECORD, seal_of_structure
from revsurgeon.errors import ArtifactError, RevsurgeonError, UnsupportedModelError, UsageError
from revsurgeon.inference_mode import outside_inference_mode
from revsurgeon.origin import Origin, keep_origin, origin_of, origin_of_rewired
from revsurgeon.recipes import Coefficients
from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.coefficients import get_coefficients, some_chains
from revsurgeon.reversible.sharding import has_sharded_parts
from revsurgeon.rewiring import ChainSpec, attach, detach
from revsurgeon.rewiring.rewire import plan_of, specs_of_rewired
from revsurgeon.rewiring.wrappers import unwrapped
from revsurgeon.sources import build_architecture


@outside_inference_mode
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
        # A config may ask for any size: its parameters never have memory of their own, only the files'.
        into = build_architecture(
            build,
            config,
            device="stand-ins",
            allow_python=allow_python,
            trust_remote_code=trust_remote_code,
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
    keep_origin(
        into,
        Origin(
            manifest.source,
            manifest.build,
            manifest.config,
            manifest.inputs,
            manifest.recipe,
            manifest.checks,
            manifest.tensors,
        ),
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
        origin = origin_of_rewired(model)
    elif are_changed(model.state_dict(), origin.tensors):
        # What was checked, and what the weights came from, holds of other weights.
        changed = {RECORD: f"{NOT_VERIFIED} since the weights were changed"}
        origin = replace(origin, source={**origin.source, "finetuned": True}, checks=changed)
    return write_network(model, origin, Path(path), force=force, max_shard_size=max_shard_size)


def write_network(
    model: nn.Module, origin: Origin, target: Path, *, force: bool, max_shard_size: int | str
) -> Path:
    """Write a rewired network and a manifest of where it came from and stands now."""
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
        arithmetic=chains[0].arithmetic,  # type: ignore[arg-type]  # a str there, which the manifest checks
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


def set_as_recorded(chain: Chain, manifest: Manifest) -> None:
    """Put a freshly attached chain where a manifest says that it was."""
    now = manifest.coefficients
    chain.set(now.alpha, now.beta)
    chain.arithmetic = manifest.arithmetic
    chain.plan = plan_of(manifest.recipe, (now.alpha, now.beta))
    chain.state = dict(manifest.schedule_state) if manifest.schedule_state is not None else None


def _record(spec: ChainSpec) -> ChainRecord:
    data = asdict(spec)
    return ChainRecord.model_validate({k: list(v) if isinstance(v, tuple) else v for k, v in data.items()})


def spec_of(record: ChainRecord) -> ChainSpec:
    """A manifest's record of a chain, as what a network is rewired by."""
    fields = record.model_dump().items()
    data: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields}
    return ChainSpec(**data)


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
