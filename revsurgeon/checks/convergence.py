"""Convergence: as beta goes to 0 the network becomes the pretrained one, with the first power of beta."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from revsurgeon.checks.check import Check, Found, Skipped
from revsurgeon.checks.report import Measurement
from revsurgeon.checks.steps import NETWORK_ERRORS, argument_cast, refusal
from revsurgeon.checks.subject import SMALL_BATCH, Point, Subject, coefficient_points
from revsurgeon.checks.thresholds import NOTHING, ORDER_BAND
from revsurgeon.reversible.coefficients import some_chains
from revsurgeon.rewiring.measure import Arguments, at_coefficients, distance, output_tensors, tensors_of
from revsurgeon.rewiring.unrewired import unrewired

LADDER = (1e-1, 1e-2, 1e-3, 1e-4, 2.0**-16)
"""The values of beta; chains take none below the last one, 1.5e-5, but 0."""

FITTED = 3
"""The order is fitted on so many of the smallest: further out, terms of higher order come in."""


def run(subject: Subject) -> Found:
    """Measure the distance of the output from the one at (1, 0) on the way from the start point to it.

    On the straight line from the manifest's start point to (1, 0): alpha = 1 - beta for the presets but
    dr2-paper, whose line is alpha = 1. The order of convergence is the slope of log distance over log beta at
    the smallest values; it is 1, and the threshold is a band of .1 around that (`ORDER_BAND` says why). It is
    measured on a copy in float64, so that rounding is far below the smallest distance.
    """
    arguments = argument_cast(subject.draw(SMALL_BATCH, 0), torch.float64)
    network = in_float64(subject.network, arguments)
    start = coefficient_points(subject.network)["start"]
    slope = (1.0 - start[0]) / start[1] if start[1] else 1.0
    with unrewired(network):
        pretrained = output_tensors(network, arguments)

    def output_distance(point: Point) -> float:
        with at_coefficients(network, *point):
            return distance(output_tensors(network, arguments), pretrained)

    points = [(1.0 - slope * beta, beta) for beta in LADDER if slope * beta <= 1.0]
    what, curve = f"the output, towards {start}", [(p[1], output_distance(p)) for p in points]
    if not any(found > NOTHING for _, found in curve):
        yield (
            f"towards {start} the output is the pretrained network's at every beta (zero branches, or "
            "a last norm takes out what they change), so what the chains return is measured at alpha = 1"
        )
        what = "what the chains return, at alpha 1"
        curve = [(beta, _chain_distance(network, arguments, (1.0, beta))) for beta in LADDER]
    order = fitted_order(curve[-FITTED:])
    told = ", ".join(f"{found:.2g} at beta {beta:.2g}" for beta, found in curve)
    yield Measurement(
        what=f"order of convergence of {what}, off 1 by",
        value=abs(order - 1.0),
        threshold=ORDER_BAND,
        detail=f"order {order:.3f}; relative distance {told}",
    )


def fitted_order(curve: list[tuple[float, float]]) -> float:
    """The slope of log distance over log beta by least squares; 0 where a distance is 0."""
    if len(curve) < 2 or any(not found > 0 for _, found in curve):
        return 0.0
    x = [math.log(beta) for beta, _ in curve]
    y = [math.log(found) for _, found in curve]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return above / sum((a - x_mean) ** 2 for a in x)


def in_float64(network: nn.Module, arguments: Arguments) -> nn.Module:
    """A copy of a rewired network in float64, with float arithmetic.

    Raises:
        Skipped: its device has no float64, or the unrewired network does not run in it.
    """
    try:
        network = copy.deepcopy(network).double()
        with unrewired(network):
            output_tensors(network, arguments)
    except NETWORK_ERRORS as error:
        raise Skipped(f"the network does not run in float64: {refusal(error)}") from None
    for chain in some_chains(network):
        chain.arithmetic = "float"
    return network


def _chain_distance(network: nn.Module, arguments: Arguments, point: Point) -> float:
    ends = [chain.blocks[-1] for chain in some_chains(network)]
    with unrewired(network):
        pretrained = _returned(network, arguments, ends)
    with at_coefficients(network, *point):
        return distance(_returned(network, arguments, ends), pretrained)


def _returned(network: nn.Module, arguments: Arguments, ends: list[str]) -> list[torch.Tensor]:
    """What these blocks return in one forward."""
    returned: list[torch.Tensor] = []
    handles = [
        network.get_submodule(path).register_forward_hook(
            lambda module, args, output: returned.extend(t.clone() for t in tensors_of(output))
        )
        for path in ends
    ]
    try:
        output_tensors(network, arguments)
    finally:
        for handle in handles:
            handle.remove()
    return returned


CHECK = Check(run, by_block=True)
