"""What a map is of: a rewired network and a batch of its inputs, from whatever names them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revsurgeon.anatomy.probe import ExampleInputs, as_arguments
from revsurgeon.artifact.header import read_header
from revsurgeon.artifact.names import MANIFEST
from revsurgeon.artifact.tensor_bytes import tensor_bytes
from revsurgeon.checkpoints import load
from revsurgeon.conversion import DTYPES
from revsurgeon.errors import UsageError
from revsurgeon.origin import model_granularity, origin_of
from revsurgeon.recipes import Recipe, load_recipe
from revsurgeon.reversible.coefficients import some_chains
from revsurgeon.rewiring import rewire_with_checks
from revsurgeon.rewiring.measure import Arguments, tensors_of
from revsurgeon.sources import resolve
from revsurgeon.sources.batch_file import read_batch
from revsurgeon.sources.inputs import InputSpec


@dataclass
class Subject:
    """A rewired network to measure on.

    Attributes:
        model: rewired.
        arguments: of its forward: one batch.
        name: short, and fit for a file's name.
        cut: how it was cut into chains, as keys of a recipe.
    """

    model: nn.Module
    arguments: Arguments
    name: str
    cut: Mapping[str, Any]

    def description(self) -> dict[str, Any]:
        """What tells this subject from others, as plain data: with equal ones the same map is measured."""
        chains = some_chains(self.model)
        plan = dict(chains[0].plan or {})
        start, end = plan.get("start"), plan.get("end")
        path = {
            "start": None if start is None else list(start),
            "end": None if end is None else list(end),
            "order": plan.get("order", "simultaneous"),
        }
        weights = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        return {
            "name": self.name,
            "weights_sha256": _hash(self.model.state_dict()),
            "dtype": str(weights.dtype).removeprefix("torch."),
            "chains": [
                {"name": c.name, "segments": sum(c.segments), "grid_bits": c.grid_bits} for c in chains
            ],
            "merge": chains[0].merge,
            "cut": dict(self.cut),
            "path": None if start is None else path,
            "inputs": [
                {"shape": list(t.shape), "sha256": _hash({"": t})} for t in tensors_of(self.arguments)
            ],
        }


def subject_of(
    path_or_model: str | Path | nn.Module,
    *,
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
) -> Subject:
    """Load an artifact, rewire a source in memory, or take a network as it is.

    Args: see `revsurgeon.errmap`.

    Raises:
        RevsurgeonError: one of its kinds, by what went wrong.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    from_source = {
        "a recipe": recipe,
        "a revision": revision,
        "random weights": random_weights,
        "unpickling": allow_pickle,
    }
    told = [what for what, given in from_source.items() if given]
    if isinstance(path_or_model, nn.Module):
        if told or dtype:
            raise UsageError(f"{(told or ['a dtype'])[0]} was asked for, but the network is given as it is.")
        return _of_model(path_or_model, example_inputs, inputs, real_input)
    if example_inputs is not None:
        raise UsageError("example inputs belong to a network; for a file or a source give real_input.")
    if is_artifact(path_or_model):
        if told:
            raise UsageError(
                f"{told[0]} was asked for, but {path_or_model} is rewired already.",
                hint="Those options are for a source, such as timm:NAME.",
            )
        model = load(path_or_model, allow_python=allow_python, trust_remote_code=trust_remote_code)
        return _of_artifact(model, Path(path_or_model), inputs, real_input, dtype)
    found = resolve(
        str(path_or_model),
        revision=revision,
        random_weights=random_weights,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    model = found.module()
    spec = found.inputs.override(inputs or ())
    if dtype is not None:
        model, spec = model.to(getattr(torch, dtype)), spec.with_float_dtype(dtype)
    arguments = _batch(spec, real_input)  # a file that does not fit is found before the surgery
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    rewire_with_checks(model, spec.example(batch_size=2), chosen)
    return Subject(model, arguments, found.name, _cut_of(chosen))


def is_artifact(path: str | Path) -> bool:
    """Whether a path is a checkpoint that was rewired already, rather than a source."""
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        return (path / MANIFEST).exists() or (bool(files) and "revsurgeon" in read_header(files[0]).metadata)
    return path.suffix == ".safetensors" and path.is_file() and "revsurgeon" in read_header(path).metadata


def _of_artifact(
    model: nn.Module,
    path: Path,
    inputs: Sequence[str] | None,
    real_input: str | Path | None,
    dtype: str | None,
) -> Subject:
    origin = origin_of(model)
    assert origin is not None  # `load` sets it
    spec = InputSpec.from_dict(origin.inputs) if origin.inputs else InputSpec()
    spec = spec.override(inputs or ())
    if dtype is not None:
        model, spec = model.to(getattr(torch, dtype)), spec.with_float_dtype(dtype)
    name = path.resolve().name if path.is_dir() else path.stem
    return Subject(model, _batch(spec, real_input), name, _cut_of(origin.recipe))


def _of_model(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    inputs: Sequence[str] | None,
    real_input: str | Path | None,
) -> Subject:
    some_chains(model)
    origin = origin_of(model)
    cut = _cut_of(origin.recipe) if origin else {"granularity": model_granularity(model)}
    if example_inputs is not None:
        return Subject(model, as_arguments(example_inputs), type(model).__name__, cut)
    spec = InputSpec.from_dict(origin.inputs) if origin and origin.inputs else InputSpec()
    return Subject(model, _batch(spec.override(inputs or ()), real_input), type(model).__name__, cut)


def _batch(spec: InputSpec, real_input: str | Path | None) -> Arguments:
    if not spec.entries:
        raise UsageError(
            "it is not known how the network is called.",
            hint="Give inputs: --input NAME=SHAPE; in Python example_inputs=.",
        )
    if real_input is not None:
        return as_arguments(read_batch(real_input, spec))
    size = next(iter(spec.entries.values())).shape[0]
    return as_arguments(spec.example(batch_size=size))


def _cut_of(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", include={"granularity", "include", "exclude"})


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
