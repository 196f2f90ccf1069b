"""Rewire a pretrained network into a reversible one, and finetune it in a fraction of the memory.

    import revsurgeon as rs

    path = rs.convert("demo", mode="dr2")                     # source -> artifact
    model = rs.load(path)                                     # artifact -> network
    ...                                                       # train as before
    rs.save(model, "finetuned")

or, for a network of one's own, `rs.rewire(model, example_inputs=...)`. Importing this does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import (
    ArtifactError,
    ChainBrokenError,
    HubError,
    RecipeError,
    RevsurgeonError,
    SourceError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)

if TYPE_CHECKING:
    from revsurgeon.anatomy import Anatomy, inspect
    from revsurgeon.checkpoints import load, save
    from revsurgeon.checks import Report, verify
    from revsurgeon.conversion import convert
    from revsurgeon.errormap import ErrorMap
    from revsurgeon.errormap.run import errmap
    from revsurgeon.exporting import export
    from revsurgeon.hub import push
    from revsurgeon.memory import MemoryPlan
    from revsurgeon.memory.estimate import estimate_memory
    from revsurgeon.recipes import Recipe, load_recipe
    from revsurgeon.reversible.coefficients import (
        chains,
        compile_segments,
        get_coefficients,
        set_coefficients,
        stored_activations,
    )
    from revsurgeon.reversible.schedule import CoefficientSchedule
    from revsurgeon.rewiring import rewire

_HOME = {
    "Anatomy": "revsurgeon.anatomy",
    "inspect": "revsurgeon.anatomy",
    "Report": "revsurgeon.checks",
    "verify": "revsurgeon.checks",
    "convert": "revsurgeon.conversion",
    "load": "revsurgeon.checkpoints",
    "save": "revsurgeon.checkpoints",
    "ErrorMap": "revsurgeon.errormap",
    "errmap": "revsurgeon.errormap.run",
    "export": "revsurgeon.exporting",
    "push": "revsurgeon.hub",
    "MemoryPlan": "revsurgeon.memory",
    "estimate_memory": "revsurgeon.memory.estimate",
    "Recipe": "revsurgeon.recipes",
    "load_recipe": "revsurgeon.recipes",
    "chains": "revsurgeon.reversible.coefficients",
    "compile_segments": "revsurgeon.reversible.coefficients",
    "get_coefficients": "revsurgeon.reversible.coefficients",
    "set_coefficients": "revsurgeon.reversible.coefficients",
    "stored_activations": "revsurgeon.reversible.coefficients",
    "CoefficientSchedule": "revsurgeon.reversible.schedule",
    "rewire": "revsurgeon.rewiring",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("revsurgeon")
    if name not in _HOME:
        raise AttributeError(f"module 'revsurgeon' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


__all__ = [
    "Anatomy",
    "ArtifactError",
    "ChainBrokenError",
    "CoefficientSchedule",
    "ErrorMap",
    "HubError",
    "MemoryPlan",
    "Recipe",
    "RecipeError",
    "Report",
    "RevsurgeonError",
    "SourceError",
    "UnsupportedModelError",
    "UsageError",
    "VerificationError",
    "chains",
    "compile_segments",
    "convert",
    "errmap",
    "estimate_memory",
    "export",
    "get_coefficients",
    "inspect",
    "load",
    "load_recipe",
    "push",
    "rewire",
    "save",
    "set_coefficients",
    "stored_activations",
    "verify",
]
