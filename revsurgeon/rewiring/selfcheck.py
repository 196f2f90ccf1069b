"""What a rewired network is checked for before anyone gets it, and what is measured on the way.

Equality with the original at (1, 0) on two batch sizes; that beta does something; then the choices that a
recipe leaves open: the start, the merge rule with less drift, the grid, and the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.probe import ExampleInputs, as_arguments
from revsurgeon.errors import (
    ChainBrokenError,
    RevsurgeonError,
    SourceError,
    UnsupportedModelError,
    VerificationError,
)
from revsurgeon.recipes import Recipe
from revsurgeon.reversible.coefficients import chains, set_coefficients, stored_activations
from revsurgeon.rewiring.measure import (
    Arguments,
    batch_size,
    distance,
    gradient_sketches,
    other_batch,
    output_tensors,
    same_bits,
    tensors_of,
)
from revsurgeon.rewiring.start import UNMEASURED, StartSearch, find_start
from revsurgeon.rewiring.unrewired import unrewired

FLOAT_GRADIENT_LIMIT = 1e-3
"""`arithmetic: auto` takes exact arithmetic where float reversal errs by more than this."""


@dataclass(frozen=True)
class SelfCheck:
    """What was found.

    Attributes:
        equal_at_1_0: the batch sizes on which the output was bit for bit the original's.
        live: relative change of the chains' outputs at (1, .5), the smallest of them; not zero.
        drift: relative distance of the output from the original's at the start point.
        merge: the rule that was chosen.
        arithmetic: "float" or "exact".
        float_gradient_error: of float reversal at the start point, relative to exact; None if not measured.
        grid_bits: of exact arithmetic.
        anchors: in float arithmetic, every how many segments the streams are stored; 0: only at the end.
        start: what was measured to find the start; None where the recipe gives it.
    """

    equal_at_1_0: tuple[int, ...]
    live: float
    drift: float
    merge: str
    arithmetic: str
    float_gradient_error: float | None
    grid_bits: int
    anchors: int
    start: StartSearch | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it: measured figures to two digits, which another thread count keeps."""
        data = {**asdict(self), "equal_at_1_0": list(self.equal_at_1_0)}
        del data["start"]
        if self.start is not None:
            data["start"] = self.start.to_dict()
        return {name: _two_digits(v) for name, v in data.items()}


def _two_digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _two_digits(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_two_digits(v) for v in value]
    if not isinstance(value, float):
        return value
    rounded = float(f"{value:.2g}")
    return rounded if math.isfinite(rounded) else value


Batches = list[tuple[int, Arguments, list[torch.Tensor]]]
"""Batch size, arguments, and the original's outputs."""


def reference_outputs(model: nn.Module, example_inputs: ExampleInputs) -> Batches:
    """What the original network computes on the example inputs and on another batch size.

    Raises:
        RevsurgeonError: the network has no weights (it is on the meta device).
        SourceError: its output is not a number.
    """
    if any(p.is_meta for p in model.parameters()):
        raise RevsurgeonError(
            "the network is on the meta device, so it cannot be checked.",
            hint="Inspect it (revsurgeon.inspect needs no weights), or load its weights first.",
        )
    batches: Batches = []
    for arguments in [as_arguments(example_inputs), *other_batch(as_arguments(example_inputs))]:
        try:
            outputs = output_tensors(model, arguments)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            if not batches:
                raise
            continue  # the original takes no other batch size
        if any(bool(output.isnan().any()) for output in outputs):
            raise _not_numbers(model)
        batches.append((batch_size(arguments), arguments, outputs))
    return batches


def _not_numbers(model: nn.Module) -> SourceError:
    """The refusal of a network whose output nothing can be compared with, naming the weights at fault."""
    state = model.state_dict()
    broken = [n for n, t in state.items() if t.is_floating_point() and bool(t.isnan().any())]
    more = [f"and {len(broken) - 12} more weights"] * (len(broken) > 12)
    return SourceError(
        f"{type(model).__name__} computes values that are not a number from its example inputs.",
        where="\n".join([f"{name}: holds such values itself" for name in broken[:12]] + more)
        or "its weights are numbers, so they overflow on the way",
        hint="Take another checkpoint."
        if broken
        else "Convert it in another dtype (--dtype float32), or give other example inputs (--input).",
    )


def check_and_start(model: nn.Module, batches: Batches, recipe: Recipe, arithmetic: str) -> SelfCheck:
    """Check a freshly attached network, settle what the recipe leaves open, and go to the start point.

    Raises:
        VerificationError: it is not equal to the original at (1, 0), or beta does nothing.
        UnsupportedModelError: the network reads again what a block wrote over its input.
    """
    for size, arguments, expected in batches:
        outputs = output_tensors(model, arguments)
        for number, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
            if not same_bits(output, wanted):
                if not all(map(same_bits, output_tensors(model, arguments), outputs)):
                    raise _not_repeatable(model)
                _check_inputs_kept(model, arguments, outputs)
                raise VerificationError(
                    "the rewired network is not equal to the original at (alpha, beta) = (1, 0).",
                    where=f"output {number}, batch of {size}: largest difference "
                    f"{float((output.double() - wanted.double()).abs().max()):.3g}",
                    hint="Please report this network. Until then, exclude blocks in the recipe.",
                )
    size, arguments, expected = batches[-1]
    live = _liveness(model, arguments)
    if live == 0.0:
        raise VerificationError(
            "beta = 0.5 does not change what a chain returns, so the chain is not part of the network's way.",
            hint="Please report this network. Until then, exclude blocks in the recipe.",
        )
    start, search = find_start(model, arguments, expected, recipe)
    chosen = _choose_arithmetic(model, arguments, arithmetic, start.beta, recipe.anchors or 0)
    for chain in chains(model):
        chain.arithmetic, chain.anchors = chosen.kind, chosen.anchors
    return SelfCheck(
        equal_at_1_0=tuple(size for size, _, _ in batches),
        live=live,
        drift=start.drift,
        merge=start.merge,
        arithmetic=chosen.kind,
        float_gradient_error=chosen.float_gradient_error,
        grid_bits=start.grid_bits,
        anchors=chosen.anchors,
        start=search,
    )


def _check_inputs_kept(model: nn.Module, arguments: Arguments, rewired: list[torch.Tensor]) -> None:
    """Whether the outputs differ because blocks of the original write over inputs that others read again.

    It is proved: blocks of the original that are given copies of their inputs compute what the rewired
    network does.

    Raises:
        UnsupportedModelError: so it is.
    """
    writing: dict[str, None] = {}
    handles = []

    def watch(path: str) -> None:
        given: list[tuple[torch.Tensor, int]] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            copies = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
            given[:] = [(tensor, tensor._version) for tensor in tensors_of(copies)]
            return copies

        def behind(module: nn.Module, args: Any, output: Any) -> None:
            if any(tensor._version != version for tensor, version in given):
                writing[path] = None

        block = model.get_submodule(path)
        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(behind))

    try:
        for path in dict.fromkeys(path for chain in chains(model) for path in chain.blocks):
            watch(path)
        with unrewired(model):
            apart = output_tensors(model, arguments)
    finally:
        for handle in handles:
            handle.remove()
    if writing and all(map(same_bits, apart, rewired)):
        raise UnsupportedModelError(
            "blocks write over their input, and the network reads it again afterwards.",
            where=", ".join(writing),
            hint="A reversible chain leaves inputs as they are, so those readers would see other values. Let "
            "the blocks add out of place (x = x + f, not x += f), or exclude them in the recipe.",
        )


def _not_repeatable(model: nn.Module) -> VerificationError:
    return VerificationError(
        f"{type(model).__name__} does not compute the same twice from the same inputs, in evaluation mode.",
        hint="Something in it is not deterministic, so nothing can be said about equality. Try "
        "torch.use_deterministic_algorithms(True), or exclude the block that it is in.",
    )


def _liveness(model: nn.Module, arguments: Arguments) -> float:
    """How much beta = .5 changes what the chains return, relative to (1, 0); the least of them.

    It is the chains' own outputs that are compared: a network whose branches start at zero computes the
    same at any coefficients on alpha = 1 - beta, and a final norm hides a change of scale.
    """
    returned: dict[str, list[torch.Tensor]] = {}
    handles = []
    for chain in chains(model):
        block = model.get_submodule(chain.blocks[-1])

        def note(module: nn.Module, args: Any, output: Any, name: str = chain.name) -> None:
            returned[name] = [t.clone() for t in tensors_of(output)]

        handles.append(block.register_forward_hook(note))
    try:
        found = []
        for beta in (0.0, 0.5):
            set_coefficients(model, 1.0, beta)
            output_tensors(model, arguments)
            found.append(dict(returned))
    finally:
        for handle in handles:
            handle.remove()
    before, after = found
    return min(distance(after[name], before[name]) for name in before)


def start_unchecked(model: nn.Module, recipe: Recipe, arithmetic: str) -> None:
    """Go to the start point without a single forward; where it should be searched for, to `UNMEASURED`."""
    at = recipe.starting_at(*UNMEASURED).start
    assert at != "auto"
    set_coefficients(model, at.alpha, at.beta)
    for chain in chains(model):
        chain.merge = "normalized" if recipe.merge == "auto" else recipe.merge
        chain.arithmetic = arithmetic
        if arithmetic == "auto":
            chain.arithmetic = "float" if at.beta == 1.0 else "exact"


@dataclass(frozen=True)
class _Chosen:
    kind: str
    anchors: int
    float_gradient_error: float | None = None


def _choose_arithmetic(
    model: nn.Module, arguments: Arguments, wanted: str, beta: float, anchors: int
) -> _Chosen:
    if wanted != "auto":
        return _Chosen(wanted, anchors)
    if beta == 1.0:
        return _Chosen("float", anchors)  # no division, so no error that grows (1e-6 on 24 segments)

    def gradients(arithmetic: str, anchors: int) -> list[torch.Tensor]:
        for chain in chains(model):
            chain.arithmetic, chain.anchors = arithmetic, anchors
        return gradient_sketches(model, arguments)

    try:
        exact = gradients("exact", anchors)
    except ChainBrokenError as broken:
        return _with_anchors(model, gradients, broken)
    error = distance(gradients("float", anchors), exact)
    return _Chosen("float" if error <= FLOAT_GRADIENT_LIMIT else "exact", anchors, error)


def _with_anchors(
    model: nn.Module, gradients: Callable[[str, int], list[torch.Tensor]], broken: ChainBrokenError
) -> _Chosen:
    """Float arithmetic for segments that do not repeat bit for bit, with as few stored streams as will do.

    Raises:
        ChainBrokenError: not even streams stored behind every segment are enough.
    """
    with stored_activations(model):
        expected = gradients("float", 0)
    anchors = max(sum(chain.segments) for chain in chains(model))
    while True:
        error = distance(gradients("float", anchors), expected)
        if error <= FLOAT_GRADIENT_LIMIT:
            return _Chosen("float", anchors, error)
        if anchors == 1:
            raise broken
        anchors = (anchors + 1) // 2
