"""What is measured on a network: outputs, gradients, and how far one is from another.

Everything here leaves the network as it found it: its modes, its gradients, its coefficients and the global
random state.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.coefficients import some_chains

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward."""


@contextlib.contextmanager
def at_coefficients(
    model: nn.Module, alpha: float, beta: float, *, arithmetic: str | None = None, merge: str | None = None
) -> Iterator[None]:
    """Have all chains of a rewired network at (alpha, beta) inside this context.

    Args:
        model: a rewired network.
        alpha: coefficient of the original skips.
        beta: coefficient of the added ones.
        arithmetic: "float" or "exact"; None leaves it.
        merge: "normalized" or "last"; None leaves it.
    """
    found = some_chains(model)
    before = [(chain.alpha, chain.beta, chain.arithmetic, chain.merge) for chain in found]
    try:
        for chain in found:
            chain.set(alpha, beta)
            chain.arithmetic = arithmetic or chain.arithmetic
            chain.merge = merge or chain.merge
        yield
    finally:
        for chain, values in zip(found, before, strict=True):
            chain.alpha, chain.beta, chain.arithmetic, chain.merge = values


def gradients(
    model: nn.Module, arguments: Arguments, *, training: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Gradients by parameter name of `projection` of the outputs; what it does not depend on is left out.

    Buffers that a forward in training mode moves are put back.
    """
    return outputs_and_gradients(model, arguments, training=training, seed=seed)[1]


def outputs_and_gradients(
    model: nn.Module, arguments: Arguments, *, training: bool = False, seed: int = 0
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """All tensors of a forward, and the `gradients` of that same forward."""
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with in_mode(model, training), _buffers_kept(model), torch.enable_grad(), _seeded(model, seed):
        output = called(model, arguments)
        found = torch.autograd.grad(projection(output), list(names.values()), allow_unused=True)
    by_name = {name: g for name, g in zip(names, found, strict=True) if g is not None}
    return [tensor.detach() for tensor in tensors_of(output)], by_name


def projection(output: Any) -> torch.Tensor:
    """A fixed random projection of all output tensors that have a gradient: a scalar to differentiate."""
    generator = torch.Generator().manual_seed(0)
    return sum(
        (
            (o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).sum()
            for o in tensors_of(output)
            if o.requires_grad
        ),
        start=torch.zeros(()),
    )


def parameters_of(model: nn.Module, chain: Chain) -> list[str]:
    """Names of the parameters of a chain's blocks."""
    prefixes = tuple(f"{path}." for path in chain.blocks)
    return [name for name, _ in model.named_parameters(remove_duplicate=False) if name.startswith(prefixes)]


def gradient_sketches(model: nn.Module, arguments: Arguments) -> list[torch.Tensor]:
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
        with in_mode(model, False), torch.enable_grad():
            for parameter in parameters:
                parameter.grad = None
            loss = projection(called(model, arguments))
            if loss.requires_grad:
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


def output_tensors(
    model: nn.Module, arguments: Arguments, *, training: bool = False, seed: int = 0
) -> list[torch.Tensor]:
    """All tensors of a forward, without gradients."""
    with in_mode(model, training), _buffers_kept(model), torch.no_grad(), _seeded(model, seed):
        return tensors_of(called(model, arguments))


def called(model: nn.Module, arguments: Arguments) -> Any:
    """The network's output; lists among the arguments are copied, because some networks work in them."""
    args, kwargs = pytree.tree_map(lambda leaf: leaf, arguments)
    return model(*args, **kwargs)


def distance(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """``||actual - expected|| / ||expected||`` over all floating tensors together.

    Values that overflowed are as far away as a float can say: JSON, where the result goes, has no infinity.
    Tensors of two shapes (a detector that finds more than before) have nothing in common.
    """
    pairs = [(a, e) for a, e in zip(actual, expected, strict=True) if e.is_floating_point()]
    alike = [(a, e) for a, e in pairs if a.shape == e.shape]
    difference = sum(float((a.double() - e.double()).square().sum()) for a, e in alike)
    difference += sum(
        float(t.double().square().sum()) for a, e in pairs if a.shape != e.shape for t in (a, e)
    )
    norm = sum(float(e.double().square().sum()) for _, e in pairs)
    found = (difference / norm) ** 0.5 if norm else difference**0.5
    return found if math.isfinite(found) else sys.float_info.max


def tensors_of(output: Any) -> list[torch.Tensor]:
    """All tensors in a (nested) output."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether both are of one dtype and shape with equal values, NaN being equal to NaN."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    return bool(((actual == expected) | ((actual != actual) & (expected != expected))).all())


def batch_size(arguments: Arguments) -> int:
    """The commonest leading dimension."""
    sizes = [t.shape[0] for t in tensors_of(arguments) if t.ndim]
    return max(set(sizes), key=sizes.count, default=1)


def other_batch(
    arguments: Arguments,
) -> Iterator[Arguments]:
    """The same inputs with one sample less, or one more where there is only one."""
    size = batch_size(arguments)

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.ndim or tensor.shape[0] != size:
            return tensor
        return tensor[:-1] if size > 1 else torch.cat([tensor, tensor])

    yield pytree.tree_map_only(torch.Tensor, resized, arguments)


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Have the network in training or evaluation mode inside this context."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back what a forward in training mode changes (running statistics)."""
    owners = [module._buffers for module in model.modules() if model.training]
    kept = [(o, n, b, b.detach().clone()) for o in owners for n, b in o.items() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in kept:
                owner[name] = buffer.copy_(value)


@contextlib.contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
