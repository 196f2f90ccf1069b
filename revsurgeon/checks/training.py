"""Training: three optimiser steps, reversible and stored, stay together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from revsurgeon.checks.check import Check, Found, Skipped
from revsurgeon.checks.comparison import Pair, compared, unstable
from revsurgeon.checks.steps import running, step
from revsurgeon.checks.subject import BATCH_SIZES, Subject
from revsurgeon.reversible.coefficients import get_coefficients, some_chains, stored_activations
from revsurgeon.reversible.schedule import CoefficientSchedule
from revsurgeon.rewiring.measure import Arguments, at_coefficients, projection

STEPS = 3

WHAT = f"relative error of the way that {STEPS} steps take"

RELATIVE_MOVE = 0.01
"""How far the first step moves the weights, relative to their length: enough that the second gradient is
another one, and little enough that the loss is nearly linear, as the threshold assumes."""

GROWTH = 2.0
"""What three steps may make of an error in the gradients.

With a step of lr, the weights are off by lr times the sum of the gradients' errors, each at most the
tolerance times its gradient. The gradients of three small steps point much the same way, so that is the
tolerance times the way that the weights have gone, and a factor for what an error in the weights does to
later gradients.
"""


def run(subject: Subject) -> Found:
    """Train three steps twice from the same weights along the recipe's schedule, and compare where they end.

    SGD with momentum, in training mode, the same batches and random states. The error is relative to the
    way that the weights have gone. Exact arithmetic must end at the same bits.
    """
    network = subject.network
    trainable = {n: p for n, p in network.named_parameters() if p.requires_grad and p.is_floating_point()}
    batches = [subject.draw(BATCH_SIZES[0], seed) for seed in range(STEPS)]
    start = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    rate = _rate(network, batches[0], start)
    if rate is None:
        raise Skipped("no parameter has a gradient")

    def gradients() -> dict[str, torch.Tensor]:
        with stored_activations(network):
            return step(network, batches[0], training=True).gradients

    def trained(stored: bool) -> dict[str, torch.Tensor]:
        try:
            with stored_activations(network) if stored else contextlib.nullcontext():
                _train(network, list(trainable.values()), batches, rate)
            return {n: p.detach() - start[n] for n, p in trainable.items()}
        finally:
            with torch.no_grad():
                for name, parameter in trainable.items():
                    parameter.copy_(start[name])

    tolerance = GROWTH * subject.gradient_tolerance()
    pair = Pair(trained(stored=False), trained(stored=True))
    if not pair.error() <= tolerance:
        # What a kernel makes of memory that nobody wrote would spread to every weight with the next step.
        out = unstable(network, gradients) & trainable.keys()
        if out:
            names = ", ".join(sorted(out))
            yield f"{WHAT}: not trained, since equal runs do not agree on their gradients: {names}"
            trainable = {name: parameter for name, parameter in trainable.items() if name not in out}
            pair = Pair(trained(stored=False), trained(stored=True))
    yield from compared(
        network,
        pair,
        WHAT,
        tolerance,
        lambda: trained(stored=True),
        backwards=False,  # the second step spreads what was wrong in the first one everywhere
    )


def _rate(network: nn.Module, arguments: Arguments, weights: dict[str, torch.Tensor]) -> float | None:
    """The learning rate with which the first step moves the weights by `RELATIVE_MOVE`."""
    with stored_activations(network):
        gradients = step(network, arguments, training=True).gradients
    length = sum(float(w.double().square().sum()) for w in weights.values()) ** 0.5
    slope = sum(float(g.double().square().sum()) for n, g in gradients.items() if n in weights) ** 0.5
    return RELATIVE_MOVE * length / slope if slope else None


def _train(network: nn.Module, parameters: list[nn.Parameter], batches: list[Any], rate: float) -> None:
    held = [parameter.grad for parameter in parameters]
    with _scheduled(network) as schedule, running(network, training=True):
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
        for number, (args, kwargs) in enumerate(batches):
            torch.manual_seed(number)
            optimizer.zero_grad()
            projection(network(*args, **kwargs)).backward()
            optimizer.step()
            schedule.step()
    for parameter, gradient in zip(parameters, held, strict=True):
        parameter.grad = gradient


@contextlib.contextmanager
def _scheduled(network: nn.Module) -> Iterator[CoefficientSchedule]:
    """The recipe's schedule over three steps; coefficients and the state of the real one are put back."""
    chains = some_chains(network)
    states, plan = [chain.state for chain in chains], dict(chains[0].plan or {})
    now = get_coefficients(network)
    start = plan.get("start", now)
    kept = {key: plan[key] for key in ("end", "policy", "order") if plan.get(key) is not None}
    with at_coefficients(network, *now):
        try:
            yield CoefficientSchedule(network, STEPS, start=start, **kept)
        finally:
            for chain, state in zip(chains, states, strict=True):
                chain.state = state


CHECK = Check(run)
