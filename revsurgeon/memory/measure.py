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

from revsurgeon.memory.allocator import watching
from revsurgeon.memory.optimizers import make_optimizer, state_tensors
from revsurgeon.memory.skeleton import constants
from revsurgeon.memory.step import StepOptions, loss, training_step
from revsurgeon.memory.strategies import STRATEGIES, Point, Strategy, training_by
from revsurgeon.reversible.coefficients import stored_activations
from revsurgeon.rewiring.measure import Arguments, tensors_of


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
    error = _gradient_error(network, strategy, point, trained, arguments, options, device)
    with training_by(network, strategy, point):
        stepper = make_optimizer(optimizer, trained, device.type)

        def step() -> None:
            training_step(network, arguments, stepper, options, device=device.type)

        for _ in range(max(warm_up, 1)):
            step()
        tensors = [
            *network.parameters(),
            *constants(network),
            *tensors_of(arguments),
            *state_tensors(stepper),
        ]
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
    point: Point,
    trained: list[nn.Parameter],
    arguments: Arguments,
    options: StepOptions,
    device: torch.device,
) -> float:
    """Relative distance from stored activations, with the same random numbers, at the same coefficients."""
    if strategy.name == "stored":
        return 0.0

    def gradients(way: Strategy, inside: AbstractContextManager[Any]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        with training_by(network, way, point), inside:
            with options.autocast(device.type):
                value = loss(network(*arguments[0], **arguments[1]))
            found = torch.autograd.grad(value, trained, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]

    own = gradients(strategy, nullcontext())
    if strategy.reversible:
        expected = gradients(strategy, stored_activations(network))
    else:
        expected = gradients(STRATEGIES["stored"], nullcontext())
    difference = sum(
        float((a.double() - b.double()).square().sum()) for a, b in zip(own, expected, strict=True)
    )
    norm = sum(float(b.double().square().sum()) for b in expected)
    return float((difference / norm) ** 0.5) if norm else float(difference**0.5)
