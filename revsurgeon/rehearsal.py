"""What a conversion would do, from the architecture alone: no weights are downloaded, read or allocated."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from revsurgeon.anatomy.inspect import inspect
from revsurgeon.anatomy.report import Anatomy
from revsurgeon.artifact import byte_limit, check_output
from revsurgeon.errors import UnsupportedModelError
from revsurgeon.memory.allocator import too_large
from revsurgeon.memory.skeleton import without_values
from revsurgeon.recipes import Recipe
from revsurgeon.rewiring.rewire import nothing_to_rewire
from revsurgeon.sources import Source, resolve


@dataclass(frozen=True)
class Rehearsal:
    """A conversion that was not made.

    Attributes:
        name: of the source, short.
        output: the directory that would be made.
        recipe: with the options given.
        anatomy: the chains that it would have.
        tensors: number of tensors that would be written.
        bytes: of them.
        files: weight files that they make, about.
        free: bytes that are free where they would go.
    """

    name: str
    output: Path
    recipe: Recipe
    anatomy: Anatomy
    tensors: int
    bytes: int
    files: int
    free: int

    @property
    def fits(self) -> bool:
        """Whether there is room for the weights."""
        return self.bytes <= self.free

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "dry_run": True,
            "name": self.name,
            "output": str(self.output),
            "recipe": self.recipe.model_dump(mode="json"),
            "tensors": self.tensors,
            "bytes": self.bytes,
            "files": self.files,
            "free": self.free,
            **self.anatomy.to_dict(code=False),
        }


def rehearse(
    source: Source,
    recipe: Recipe,
    *,
    output: Path | None = None,
    inputs: Sequence[str] = (),
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    force: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Rehearsal:
    """Do all of a conversion that needs no weights.

    Args:
        source: resolved.
        recipe: with options applied.
        output, inputs, dtype, max_shard_size, force: as in `revsurgeon.convert`.
        tell: is told what happens next.

    Raises:
        ArtifactError: the output cannot be written.
        UnsupportedModelError: nothing in the network can be rewired.
    """
    target = Path(output) if output is not None else Path(f"{source.name}-{recipe.mode}")
    check_output(target, force=force)
    limit = byte_limit(max_shard_size)
    anatomy, _ = anatomy_of(source, inputs, tell, recipe)
    if not anatomy.chains:
        raise nothing_to_rewire(source.name, anatomy)
    stored = {id(t): t for t in source.module("meta").state_dict().values()}
    cast = getattr(torch, dtype).itemsize if dtype else None
    sizes = [
        t.numel() * (cast if cast is not None and t.is_floating_point() else t.element_size())
        for t in stored.values()
    ]
    there = next(parent for parent in target.absolute().parents if parent.is_dir())
    return Rehearsal(
        name=source.name,
        output=target,
        recipe=recipe,
        anatomy=anatomy,
        tensors=len(sizes),
        bytes=sum(sizes),
        files=max(1, math.ceil(sum(sizes) / limit)),
        free=shutil.disk_usage(there).free,
    )


def architecture_of(
    spec: str,
    *,
    revision: str | None,
    allow_pickle: bool,
    trust_remote_code: bool,
    tell: Callable[[str], None],
) -> Source:
    """Look up a source for what it says of its network; its weights are left where they are.

    Args:
        spec, revision, allow_pickle, trust_remote_code: as in `revsurgeon.convert`.
        tell: is told what happens next.

    Raises:
        RevsurgeonError: what `revsurgeon.sources.resolve` raises.
    """
    tell(f"Reading the architecture of {spec}")
    return resolve(
        spec,
        revision=revision,
        random_weights=True,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )


def anatomy_of(
    source: Source, inputs: Sequence[str], tell: Callable[[str], None], recipe: Recipe | None = None
) -> tuple[Anatomy, str]:
    """Inspect a source on the meta device, or with random weights where its forward needs real numbers.

    Returns:
        The anatomy, and the device that it was found on: "meta" or "cpu".

    Raises:
        UnsupportedModelError: it needs real numbers, and there is no memory for its weights.
        RevsurgeonError: what `revsurgeon.inspect` raises.
    """
    spec = source.inputs.override(inputs)
    chosen: dict[str, Any] = {}
    if recipe is not None:
        chosen = {"granularity": recipe.granularity, "select": recipe.selects}
    tell("Following one forward pass, without weights")
    # Masks and positions have values beside weights that have none, for code that looks (`if mask.all()`).
    ways = ((lambda: source.module("meta"), "meta"), (lambda: without_values(source.module("meta")), "cpu"))
    for make, device in ways:
        try:
            return inspect(make(), spec.example(device=device), **chosen), "meta"
        except (RuntimeError, UnsupportedModelError):
            # Control flow on values and operators without a meta kernel end here. Where the inputs are
            # wrong, so are they with real numbers, and that error is the one to show.
            continue
    tell("It needs real numbers: once more with random weights")
    if (told := too_large(source.module("meta"))) is not None:
        raise UnsupportedModelError(
            "the network decides by values, and there is no memory for its weights to find out how.",
            where=f"{source.name}: {told}",
            hint="Take a smaller network of the same kind, or give other inputs (--input).",
        )
    return inspect(source.module("cpu"), spec.example(device="cpu"), **chosen), "cpu"
