"""Where a network came from, kept on it from loading to saving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from revsurgeon.artifact import TensorRecord
from revsurgeon.recipes import Recipe
from revsurgeon.reversible.coefficients import some_chains

_ORIGIN = "_revsurgeon_origin"
"""Attribute of a loaded network that says where it came from."""


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


def origin_of(model: nn.Module) -> Origin | None:
    """Where a network came from that `load` returned; None for any other."""
    origin: Origin | None = model.__dict__.get(_ORIGIN)
    return origin


def keep_origin(model: nn.Module, origin: Origin) -> None:
    """Note on a network where it came from; its class and state dict do not change."""
    model.__dict__[_ORIGIN] = origin


def origin_of_rewired(model: nn.Module) -> Origin:
    """What can be said of a network that `rewire` made of a module."""
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
