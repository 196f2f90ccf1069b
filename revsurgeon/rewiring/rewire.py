"""Rewire a network in place: put segment-running forwards on its blocks, and check the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from revsurgeon.anatomy import Anatomy, inspect
from revsurgeon.anatomy.probe import ExampleInputs, untouched
from revsurgeon.errors import UnsupportedModelError
from revsurgeon.inference_mode import outside_inference_mode
from revsurgeon.recipes import Recipe, load_recipe
from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.coefficients import chains, get_coefficients
from revsurgeon.reversible.sharding import has_sharded_parts
from revsurgeon.rewiring.block import RewiredForward

if TYPE_CHECKING:
    from revsurgeon.rewiring.selfcheck import SelfCheck

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class ChainSpec:
    """All that is needed to rewire one chain, without inspecting the network again.

    Attributes:
        name: the chain's.
        blocks: module paths in the order of their calls; a shared block comes several times.
        streams: for each block, the forward's parameter that takes the stream.
        outputs: for each block, the stream's place among the flattened outputs.
        segments: for each block, how many residual modules it has.
        merge: "normalized" or "last".
        copy_output: the network writes into the chain's output.
        grid_bits: grid points per unit in exact arithmetic, as a power of two.
        anchors: in float arithmetic, streams are stored every so many segments; 0: at the end only.
        chunks: into how many pieces segments are cut whose pieces are independent.
    """

    name: str
    blocks: tuple[str, ...]
    streams: tuple[str, ...]
    outputs: tuple[int, ...]
    segments: tuple[int, ...]
    merge: str = "normalized"
    copy_output: bool = False
    grid_bits: int = 20
    anchors: int = 0
    chunks: int = 1


@outside_inference_mode
def rewire(
    model: Network,
    mode: str = "dr2",
    *,
    example_inputs: ExampleInputs,
    recipe: str | Path | Recipe | None = None,
    arithmetic: str | None = None,
) -> Network:
    """Rewire a network into a reversible one, in place.

    Every block keeps its class, name, parameters and hooks; only its forward now runs its residual modules
    as segments of a reversible chain. At (alpha, beta) = (1, 0) the network computes what it computed before,
    bit for bit, which is checked here before the coefficients are set to the recipe's start.

    Args:
        model: any network with residual structure. Its modes and gradients flags stay as they are.
        mode: "dr2" (Dr2Net, Zhao et al., CVPR 2024) or "re2" (Re2TAL, Zhao et al., CVPR 2023).
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments, on the
            network's device; the leading dimension is the batch.
        recipe: a preset's name, a YAML file or a `Recipe`; None takes the mode's default.
        arithmetic: "float", "exact" or "auto"; None takes the recipe's.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: nothing in it can be rewired; it is left as it was.
        VerificationError: the rewired network is not equal to the original; it is left as it was.
        RecipeError: the recipe does not validate.

    Example:
        >>> import torch, timm
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> model = rewire(model, example_inputs=torch.randn(2, 3, 32, 32), recipe="dr2-hold")
        >>> [(chain.name, chain.alpha, chain.beta) for chain in chains(model)]
        [('blocks', 0.9, 0.1)]
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, mode)
    rewire_with_checks(model, example_inputs, chosen, arithmetic)
    return model


def rewire_with_checks(
    model: nn.Module,
    example_inputs: ExampleInputs,
    recipe: Recipe,
    arithmetic: str | None = None,
    *,
    check: bool = True,
) -> tuple[Anatomy, SelfCheck | None]:
    """`rewire`, returning what was found and what was measured; `check=False` measures nothing.

    Without measurements, `start: auto` is (.9, .1), `merge: auto` is "normalized" and `arithmetic: auto` is
    "exact" below beta = 1.
    """
    from revsurgeon.rewiring.selfcheck import check_and_start, reference_outputs, start_unchecked

    if chains(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is rewired already.",
            hint="Change its coefficients with revsurgeon.set_coefficients, or start from the original.",
        )
    if has_sharded_parts(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is sharded already.",
            hint="Rewire it first, and call fully_shard on its blocks and on itself afterwards.",
        )
    anatomy = inspect(model, example_inputs, granularity=recipe.granularity, select=recipe.selects)
    if not anatomy.chains:
        raise nothing_to_rewire(type(model).__name__, anatomy)
    with untouched(model):
        reference = reference_outputs(model, example_inputs) if check else []
    found = None
    try:
        attach(model, specs_of(anatomy, recipe), granularity=recipe.granularity)
        with untouched(model):
            if check:
                found = check_and_start(model, reference, recipe, arithmetic or recipe.arithmetic)
            else:
                start_unchecked(model, recipe, arithmetic or recipe.arithmetic)
        plan = plan_of(recipe, get_coefficients(model))
        for chain in chains(model):
            chain.plan = plan
    except BaseException:  # a Ctrl-C too must leave the network as it was
        detach(model)
        raise
    return anatomy, found


def plan_of(recipe: Recipe, found: tuple[float, float]) -> dict[str, Any]:
    """How a recipe moves the coefficients: arguments of `CoefficientSchedule`, as plain data.

    Args:
        recipe: validated.
        found: (alpha, beta) to start with where the recipe has the start searched for.
    """
    plan: dict[str, Any] = recipe.schedule.model_dump(exclude_none=True) if recipe.schedule else {}
    start = recipe.starting_at(*found).start
    plan["start"] = found if start == "auto" else (start.alpha, start.beta)
    if recipe.end is not None:
        plan["end"] = (recipe.end.alpha, recipe.end.beta)
    return plan


def specs_of(anatomy: Anatomy, recipe: Recipe) -> list[ChainSpec]:
    """The chains of an anatomy as specifications."""
    return [
        ChainSpec(
            name=chain.name,
            blocks=tuple(b.path for b in chain.blocks),
            streams=tuple(b.stream for b in chain.blocks),
            outputs=tuple(b.output for b in chain.blocks),
            segments=tuple(len(b.segments) for b in chain.blocks),
            anchors=recipe.anchors or 0,
            chunks=recipe.chunks,
            copy_output=chain.copy_output,
        )
        for chain in anatomy.chains
    ]


def specs_of_rewired(model: nn.Module) -> list[ChainSpec]:
    """The chains of a rewired network as specifications."""
    forwards = {m.__dict__["forward"].path: m.__dict__["forward"] for m in model.modules() if is_rewired(m)}
    return [
        ChainSpec(
            name=chain.name,
            blocks=chain.blocks,
            streams=tuple(forwards[path].stream for path in chain.blocks),
            outputs=tuple(forwards[path].output for path in chain.blocks),
            segments=chain.segments,
            merge=chain.merge,
            copy_output=chain.copy_output,
            grid_bits=chain.grid_bits,
            anchors=chain.anchors,
            chunks=chain.chunks,
        )
        for chain in chains(model)
    ]


def is_rewired(module: nn.Module) -> bool:
    """Whether a module is a rewired block."""
    return isinstance(module.__dict__.get("forward"), RewiredForward)


def attach(model: nn.Module, specs: Sequence[ChainSpec], *, granularity: str = "segment") -> list[Chain]:
    """Put chains on a network; they start at (1, 0), the network as it was.

    Raises:
        UnsupportedModelError: a block is missing, is the network itself, or is in a chain already.
    """
    modules = dict(model.named_modules())
    _check_blocks(model, modules, specs)
    attached = []
    for spec in specs:
        chain = Chain(
            spec.name,
            spec.blocks,
            spec.segments,
            merge=spec.merge,
            grid_bits=spec.grid_bits,
            anchors=spec.anchors,
            chunks=spec.chunks,
            copy_output=spec.copy_output,
        )
        attached.append(chain)
        rows = zip(spec.blocks, spec.streams, spec.outputs, spec.segments, strict=True)
        for path, stream, output, segments in {row[0]: row for row in rows}.values():
            block = modules[path]
            forward = RewiredForward(block, chain, path, stream, output, segments, granularity)
            block.__dict__["forward"] = forward
    return attached


def _check_blocks(model: nn.Module, modules: dict[str, nn.Module], specs: Sequence[ChainSpec]) -> None:
    """Whether each block is there, and for one chain only; before anything is put in place."""
    name = type(model).__name__
    missing = [path for spec in specs for path in spec.blocks if path not in modules]
    if missing:
        raise UnsupportedModelError(
            f"{name} has no module {missing[0]!r}.",
            where=f"{len(missing)} of the blocks to rewire are missing",
            hint="The chains belong to another architecture, or to another version of it.",
        )
    taken: dict[str, str] = {}
    for spec in specs:
        for path in dict.fromkeys(spec.blocks):
            if not path:
                raise UnsupportedModelError(
                    f"a block of chain {spec.name!r} has an empty path, which is {name} itself.",
                    hint="A block is a module inside of the network; give its dotted path.",
                )
            if path in taken or is_rewired(modules[path]):
                where = f"chains {taken[path]!r} and {spec.name!r}" if path in taken else "rewired before"
                raise UnsupportedModelError(
                    f"block {path!r} of {name} would be in two chains.",
                    where=where,
                    hint="A block that runs several times comes several times in one chain.",
                )
            taken[path] = spec.name


def detach(model: nn.Module) -> None:
    """Take the chains off again: the network is what it was before `attach`."""
    for module in model.modules():
        if is_rewired(module):
            forward = module.__dict__.pop("forward")
            if forward.replaced is not None:
                module.__dict__["forward"] = forward.replaced


def nothing_to_rewire(name: str, anatomy: Anatomy) -> UnsupportedModelError:
    """The refusal of a network, with the reasons grouped by the place they were found."""
    groups: dict[tuple[str, str], list[str]] = {}
    for skipped in anatomy.skipped:
        parent = skipped.path.rpartition(".")[0]
        groups.setdefault((parent, str(skipped.reason)), []).append(skipped.detail)
    lines = [
        f"{parent or '(top level)'} ({len(details)} module{'s' * (len(details) > 1)}): {reason}: {details[0]}"
        for (parent, reason), details in groups.items()
    ]
    where = "\n".join(lines[:12] + [f"and {len(lines) - 12} more places"] * (len(lines) > 12))
    return UnsupportedModelError(
        f"no block of {name!r} can be rewired.",
        where=where or "it has no repeated blocks",
        hint="Reversible rewiring needs blocks of the form post(F(x) + x) that follow each other.\n"
        "See what was looked at: revsurgeon inspect SOURCE --all",
    )
