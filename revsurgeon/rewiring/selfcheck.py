"""What a rewired network is checked for before anyone gets it, and what is measured on the way.

Equality with the original at (1, 0) on two batch sizes; that beta does something; then the choices that a
recipe leaves open: the merge rule with less drift, the grid, and the arithmetic.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.probe import ExampleInputs, as_arguments
from revsurgeon.errors import RevsurgeonError, SourceError, VerificationError
from revsurgeon.recipes import Recipe
from revsurgeon.reversible.arithmetic import grid_bits_for
from revsurgeon.reversible.coefficients import chains, set_coefficients

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
    """

    equal_at_1_0: tuple[int, ...]
    live: float
    drift: float
    merge: str
    arithmetic: str
    float_gradient_error: float | None
    grid_bits: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it: measured figures to two digits, which another thread count keeps."""
        data = {**asdict(self), "equal_at_1_0": list(self.equal_at_1_0)}
        return {name: _two_digits(v) if isinstance(v, float) else v for name, v in data.items()}


def _two_digits(value: float) -> float:
    rounded = float(f"{value:.2g}")
    return rounded if math.isfinite(rounded) else value


Batches = list[tuple[int, tuple[tuple[Any, ...], dict[str, Any]], list[torch.Tensor]]]
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
    for arguments in [as_arguments(example_inputs), *_other_batch(as_arguments(example_inputs))]:
        try:
            outputs = output_tensors(model, arguments)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            if not batches:
                raise
            continue  # the original takes no other batch size
        if any(bool(output.isnan().any()) for output in outputs):
            raise _not_numbers(model)
        batches.append((_batch_size(arguments), arguments, outputs))
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
    """
    found = chains(model)
    for size, arguments, expected in batches:
        outputs = output_tensors(model, arguments)
        for number, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
            if not _same_bits(output, wanted):
                raise VerificationError(
                    "the rewired network is not equal to the original at (alpha, beta) = (1, 0).",
                    where=f"output {number}, batch of {size}: largest difference "
                    f"{float((output.double() - wanted.double()).abs().max()):.3g}",
                    hint="Please report this network. Until then, exclude blocks in the recipe.",
                )
    size, arguments, expected = batches[-1]
    start = recipe.start
    live = _liveness(model, arguments)
    set_coefficients(model, start.alpha, start.beta)
    drifts = {}
    with _largest_values(model) as largest:
        for rule in ("normalized", "last") if recipe.merge == "auto" else (recipe.merge,):
            for chain in found:
                chain.merge = rule
            drifts[rule] = distance(output_tensors(model, arguments), expected)
    if live == 0.0:
        raise VerificationError(
            "beta = 0.5 does not change what a chain returns, so the chain is not part of the network's way.",
            hint="Please report this network. Until then, exclude blocks in the recipe.",
        )
    merge = min(drifts, key=lambda rule: drifts[rule])
    bits = grid_bits_for(max(largest.values(), default=1.0))
    for chain in found:
        chain.merge, chain.grid_bits = merge, bits
    chosen, error = _choose_arithmetic(model, arguments, arithmetic, start.beta)
    for chain in found:
        chain.arithmetic = chosen
    sizes = tuple(size for size, _, _ in batches)
    return SelfCheck(sizes, live, drifts[merge], merge, chosen, error, bits)


def _liveness(model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> float:
    """How much beta = .5 changes what the chains return, relative to (1, 0); the least of them.

    It is the chains' own outputs that are compared: a network whose branches start at zero computes the
    same at any coefficients on alpha = 1 - beta, and a final norm hides a change of scale.
    """
    returned: dict[str, list[torch.Tensor]] = {}
    handles = []
    for chain in chains(model):
        block = model.get_submodule(chain.blocks[-1])

        def note(module: nn.Module, args: Any, output: Any, name: str = chain.name) -> None:
            returned[name] = [t.clone() for t in _tensors(output)]

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
    """Go to the start point without a single forward."""
    set_coefficients(model, recipe.start.alpha, recipe.start.beta)
    for chain in chains(model):
        chain.merge = "normalized" if recipe.merge == "auto" else recipe.merge
        chain.arithmetic = arithmetic
        if arithmetic == "auto":
            chain.arithmetic = "float" if recipe.start.beta == 1.0 else "exact"


def _choose_arithmetic(
    model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]], wanted: str, beta: float
) -> tuple[str, float | None]:
    if wanted != "auto":
        return wanted, None
    if beta == 1.0:
        return "float", None  # no division, so no error that grows (1e-6 on 24 segments)
    gradients = []
    for arithmetic in ("exact", "float"):
        for chain in chains(model):
            chain.arithmetic = arithmetic
        gradients.append(gradient_sketches(model, arguments))
    error = distance(gradients[1], gradients[0])
    return ("float" if error <= FLOAT_GRADIENT_LIMIT else "exact"), error


def gradient_sketches(
    model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]
) -> list[torch.Tensor]:
    """Gradients of a fixed random projection of the output, in evaluation mode, each as a short vector.

    Gradients as large as the weights, twice, would be most of a conversion's memory. So each is folded and
    let go of as soon as backward has it. Folding is linear and keeps lengths on average (a count sketch:
    Charikar, Chen and Farach-Colton 2002), so the distance of two sketches, relative to one of them, is
    that of the gradients to within a few per cent. Gradients that the network holds are left as they are.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    held = [p.grad for p in parameters]
    sketches: dict[int, torch.Tensor] = {}

    def fold(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        sketches[id(parameter)] = _folded(parameter.grad)
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(fold) for p in parameters]
    try:
        with _evaluating(model), torch.enable_grad():
            for parameter in parameters:
                parameter.grad = None
            outputs = _tensors(model(*arguments[0], **arguments[1]))
            generator = torch.Generator().manual_seed(0)
            loss = sum(
                (o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).sum()
                for o in outputs
                if o.requires_grad
            )
            if isinstance(loss, torch.Tensor):
                loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in zip(parameters, held, strict=True):
            parameter.grad = gradient
    return [sketches[id(p)] for p in parameters if id(p) in sketches]


_SKETCH = 4096


def _folded(gradient: torch.Tensor) -> torch.Tensor:
    """Rows of the flattened gradient, each with a sign drawn from a fixed seed, added up."""
    flat = gradient.detach().reshape(-1)
    rows = len(flat) // _SKETCH
    whole, rest = flat[: rows * _SKETCH].view(rows, _SKETCH), flat[rows * _SKETCH :].float()
    generator = torch.Generator().manual_seed(len(flat))
    signs = torch.randint(0, 2, (rows,), generator=generator).mul_(2).sub_(1).to(flat.device, torch.float32)
    folded = torch.zeros(_SKETCH, device=flat.device)
    for start in range(0, rows, _SKETCH):  # a part at a time, so that low precision is not widened as a whole
        folded += signs[start : start + _SKETCH] @ whole[start : start + _SKETCH].float()
    folded[: len(rest)] += rest
    return folded


def output_tensors(model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[torch.Tensor]:
    """All tensors of a forward in evaluation mode, the random state left as it was."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with _evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return _tensors(model(*arguments[0], **arguments[1]))


def distance(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """``||actual - expected|| / ||expected||`` over all floating tensors together.

    Values that overflowed are as far away as a float can say: JSON, where the result goes, has no infinity.
    """
    pairs = [(a, e) for a, e in zip(actual, expected, strict=True) if e.is_floating_point()]
    difference = sum(float((a.double() - e.double()).square().sum()) for a, e in pairs)
    norm = sum(float(e.double().square().sum()) for _, e in pairs)
    found = (difference / norm) ** 0.5 if norm else difference**0.5
    return found if math.isfinite(found) else sys.float_info.max


def _tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    return bool(((actual == expected) | ((actual != actual) & (expected != expected))).all())


def _batch_size(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> int:
    sizes = [t.shape[0] for t in _tensors(arguments) if t.ndim]
    return max(set(sizes), key=sizes.count, default=1)


def _other_batch(
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The same inputs with one sample less, or one more where there is only one."""
    size = _batch_size(arguments)

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.ndim or tensor.shape[0] != size:
            return tensor
        return tensor[:-1] if size > 1 else torch.cat([tensor, tensor])

    yield pytree.tree_map_only(torch.Tensor, resized, arguments)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def _largest_values(model: nn.Module) -> Iterator[dict[str, float]]:
    """The largest magnitude of x behind every block, while this context is open."""
    largest: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if "forward" in module.__dict__ and getattr(module.__dict__["forward"], "chain", None) is not None:

            def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                top = max(
                    (float(t.abs().max()) for t in _tensors((args, output)) if t.is_floating_point()),
                    default=0,
                )
                largest[name] = max(largest.get(name, 0.0), top)

            handles.append(module.register_forward_hook(note))
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()
