"""Measure one training step for real: memory, time and the error of its gradients."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.memory.allocator import watching
from revsurgeon.memory.optimizers import make_optimizer, state_tensors
from revsurgeon.memory.skeleton import constants
from revsurgeon.memory.step import Arguments, StepOptions, loss, training_step
from revsurgeon.memory.strategies import Point, Strategy, training_by
from revsurgeon.reversible.coefficients import stored_activations


@dataclass(frozen=True)
class Measured:
    """One way to train, measured.

    Attributes:
        peak: most bytes at one time, parameters and all.
        reserved: what the allocator held of the device; None on a CPU.
        kept: bytes that a forward leaves behind for its backward, the output's among them.
        states: bytes of parameters, buffers, inputs and optimizer states.
        seconds: of every timed step.
        error: relative distance of the gradients from those of stored activations of the same function.
    """

    peak: int
    reserved: int | None
    kept: int
    states: int
    seconds: tuple[float, ...]
    error: float

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)


def measure(
    network: nn.Module,
    strategy: Strategy,
    point: Point,
    arguments: Arguments,
    *,
    optimizer: str,
    options: StepOptions,
    steps: int = 5,
    warm_up: int = 2,
) -> Measured:
    """Measure a rewired network in one way; its weights stay as they are.

    Args:
        network: rewired, on its device.
        strategy: the way.
        point: coefficients of a reversible way.
        arguments: of its forward, on the same device.
        optimizer: name.
        options: of the step.
        steps: that are timed.
        warm_up: steps before them; at least one, in which blocks are cut and optimizer states made.
    """
    device = next(network.parameters()).device
    network.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    with training_by(network, strategy, point):
        error = _gradient_error(network, strategy, trained, arguments, options, device)
        stepper = make_optimizer(optimizer, trained, device.type)

        def step() -> None:
            training_step(network, arguments, stepper, options, device=device.type)

        for _ in range(max(warm_up, 1)):
            step()
        tensors = [*network.parameters(), *constants(network), *_tensors(arguments), *state_tensors(stepper)]
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        states = sum(storages.values())
        with watching(device) as forward, options.autocast(device.type):
            value = loss(network(*arguments[0], **arguments[1]))
        kept = forward.end
        del value
        with watching(device) as whole:
            step()
        seconds = tuple(_timed(step, device) for _ in range(steps))
    return Measured(states + whole.peak, whole.reserved, kept, states, seconds, error)


def _timed(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize(device)
        return float(begin.elapsed_time(end)) / 1000.0
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _gradient_error(
    network: nn.Module,
    strategy: Strategy,
    trained: list[nn.Parameter],
    arguments: Arguments,
    options: StepOptions,
    device: torch.device,
) -> float:
    """Relative distance from stored activations, with the same random numbers, at the same coefficients."""
    if strategy.name == "stored":
        return 0.0

    def gradients(inside: AbstractContextManager[Any]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        with inside:
            with options.autocast(device.type):
                value = loss(network(*arguments[0], **arguments[1]))
            found = torch.autograd.grad(value, trained, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]

    if strategy.reversible:
        own, expected = gradients(nullcontext()), gradients(stored_activations(network))
    else:
        own, expected = gradients(nullcontext()), gradients(_without_checkpoints(network))
    difference = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(own, expected, strict=True)
    )
    norm = sum(float(b.double().square().sum()) for b in expected)
    return float((difference / norm) ** 0.5) if norm else float(difference**0.5)


class _without_checkpoints:  # noqa: N801  # a context manager, used as one
    """Take the checkpoints off the blocks inside this context."""

    def __init__(self, network: nn.Module) -> None:
        self._kept = [(m, m.__dict__["forward"]) for m in network.modules() if "forward" in m.__dict__]

    def __enter__(self) -> None:
        for module, forward in self._kept:
            plain = getattr(forward, "args", (None,))[0]
            module.__dict__.pop("forward")
            if plain is not None and getattr(plain, "__self__", None) is not module:
                module.__dict__["forward"] = plain

    def __exit__(self, *_: object) -> None:
        for module, forward in self._kept:
            module.__dict__["forward"] = forward


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
