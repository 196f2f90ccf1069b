"""Reversibility: forward, then back; what is recovered is what was there."""

from __future__ import annotations

import math
from typing import Any

import torch

from revsurgeon.checks import thresholds
from revsurgeon.checks.check import Check, Found
from revsurgeon.checks.report import Measurement
from revsurgeon.checks.steps import error, running
from revsurgeon.checks.subject import BATCH_SIZES, Subject, can_autocast, words
from revsurgeon.errors import RevsurgeonError
from revsurgeon.reversible.arithmetic import Streams
from revsurgeon.reversible.round_trip import Trip, trips
from revsurgeon.rewiring.measure import Arguments, at_coefficients


def run(subject: Subject) -> Found:
    """Rebuild the streams of every chain from its end, and compare them with the ones that were there.

    In training mode, at the start, middle and end coefficients, in the manifest's arithmetic, and once with
    the forward, but not the way back, under bfloat16 autocast. Exact arithmetic must recover every bit and
    the memory layout. Float arithmetic is looked at twice: each step back by itself, from the true streams
    behind it, may err by two eps; and what has accumulated from the end of the chain to its start may be
    `RECOVERED_LIMIT`. Under autocast only the single steps count: there the accumulated error is hopeless.
    """
    arguments = subject.draw(BATCH_SIZES[0], 0)
    for name, point in subject.points().items():
        with at_coefficients(subject.network, *point):
            yield from _there_and_back(subject, arguments, words(name, point), autocast=False)
            if name == "start" and not subject.quick and can_autocast(subject):
                where = f"{words(name, point)}, forward under bfloat16 autocast"
                yield from _there_and_back(subject, arguments, where, autocast=True)


def _there_and_back(subject: Subject, arguments: Arguments, where: str, autocast: bool) -> Found:
    network = subject.network

    def forward() -> Any:
        with torch.autocast(subject.device.type, dtype=torch.bfloat16, enabled=autocast):
            return network(*arguments[0], **arguments[1])

    with running(network, training=True), torch.enable_grad():
        found, graph = trips(forward, subject.chains)
        if not found:
            yield f"no chain has a way back at {where}: nothing in it needs a gradient"
        for trip in found:
            exact = trip.chain.arithmetic == "exact"
            if not exact:
                yield _single_steps(trip, f"{trip.chain.name} at {where}")
            if exact or not autocast:
                yield _whole_way(trip, f"{trip.chain.name} at {where}", subject.recovery_tolerance)
        del graph


def _whole_way(trip: Trip, where: str, tolerance: float) -> Measurement:
    """The error of the recovered streams, from the end of the chain to its start."""
    exact = trip.chain.arithmetic == "exact"
    errors: dict[str, float] = {}
    wrong, detail = None, None
    try:
        for index, recovered in trip.back():
            name = trip.names[index]
            errors[name] = _error(recovered, trip.streams[index], exact=exact)
            if wrong is None and not errors[name] <= tolerance:
                wrong, detail = name, "the first segment on the way back that goes wrong"
    except RevsurgeonError as error:  # the runtime noticed by itself
        name = trip.names[-1 - len(errors)]
        errors[name] = math.inf
        wrong, detail = wrong or name, detail or error.what
    worst = max(errors, key=lambda name: errors[name])
    return Measurement(
        what=f"relative error of the recovered input of {where}",
        value=errors[worst],
        threshold=tolerance,
        place=wrong or (worst if errors[worst] else None),
        detail=detail,
        by_segment=dict(reversed(errors.items())),
    )


def _single_steps(trip: Trip, where: str) -> Measurement:
    """The error of one step back from the true streams, relative to both of them."""
    errors: dict[str, float] = {}
    for index, name in enumerate(trip.names):
        try:
            recovered, true, behind = trip.one_step_back(index), *trip.streams[index : index + 2]
        except RevsurgeonError:
            errors[name] = math.inf
            continue
        x = _relative(recovered.x, true.x, true.x)
        errors[name] = max(x, _relative(recovered.y, true.y, behind.x, true.y))
        if not _same_layout(recovered, true):
            errors[name] = max(errors[name], 1.0)
    limit = thresholds.step_back(trip.streams[0].x.dtype)
    worst = max(errors, key=lambda name: errors[name])
    place = next((name for name in reversed(errors) if not errors[name] <= limit), worst)
    return Measurement(
        what=f"relative error of one step back, {where}",
        value=errors[worst],
        threshold=limit,
        place=place,
        by_segment=errors,
    )


def _error(recovered: Streams, true: Streams, *, exact: bool) -> float:
    """Of the segment's input x, and in exact arithmetic of both streams.

    In float an error of y is told at the segment before, whose x is made of it; before the first one there is
    none, and nothing depends on y. Another memory layout is an error too, since kernels may go by it.
    """
    if not _same_layout(recovered, true):
        return float("inf")
    if exact:
        return error([recovered.x, recovered.y], [true.x, true.y])
    return error([recovered.x], [true.x])


def _same_layout(recovered: Streams, true: Streams) -> bool:
    pairs = ((recovered.x, true.x), (recovered.y, true.y))
    # A stride of 0 (an expanded tensor) cannot be had again, and no two kernels go by it.
    return all(0 in wanted.stride() or actual.stride() == wanted.stride() for actual, wanted in pairs)


def _relative(actual: torch.Tensor, expected: torch.Tensor, *operands: torch.Tensor) -> float:
    scale = sum(float(operand.double().norm()) for operand in operands)
    difference = float((actual.double() - expected.double()).norm())
    return difference / scale if scale else difference


CHECK = Check(run, quick=True, by_block=True)
