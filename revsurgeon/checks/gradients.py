"""Gradients: reversible ones are those of stored activations, and both are the equations' own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from revsurgeon.checks import thresholds
from revsurgeon.checks.check import Check, Found, Skipped
from revsurgeon.checks.comparison import Pair, Tensors, compared, measured, unstable
from revsurgeon.checks.convergence import in_float64
from revsurgeon.checks.reference import beta_of, by_the_equations
from revsurgeon.checks.report import Measurement
from revsurgeon.checks.steps import Ran, argument_cast, error, step
from revsurgeon.checks.subject import BATCH_SIZES, SMALL_BATCH, Point, Subject, can_autocast, words
from revsurgeon.reversible.coefficients import stored_activations
from revsurgeon.rewiring.measure import Arguments, at_coefficients

PERTURBED_RUNS = 4


def run(subject: Subject) -> Found:
    """Compare the gradients of all parameters and inputs, whole and chain by chain, at start, middle and end.

    Reversible against stored, in training mode with the same random state, and in evaluation mode. In exact
    arithmetic they are equal bit for bit, also with the forward (not the backward) under bfloat16 autocast;
    in float arithmetic they may be `FLOAT_LIMIT` apart. Buffers and random state behind the step are equal.

    Both against plain autograd of the paper's equations in float64: their error may be that of plain
    gradients in their own precision, times `REFERENCE_FACTOR`, and in float arithmetic `FLOAT_LIMIT` more.
    """
    for kind in _kinds(subject):
        with at_coefficients(subject.network, *kind.point):
            yield from _against_stored(subject, kind)
    try:
        yield from _against_float64(subject)
    except Skipped as reason:
        yield str(reason)


@dataclass(frozen=True)
class _Kind:
    """One way to take a step."""

    name: str
    point: Point
    training: bool
    seed: int
    autocast: torch.dtype | None = None

    @property
    def words(self) -> str:
        """For the report."""
        mode = "training mode" if self.training else "evaluation mode"
        under = ", forward under bfloat16 autocast" if self.autocast else ""
        return f"{words(self.name, self.point)}, {mode}{under}, seed {self.seed}"


def _kinds(subject: Subject) -> Iterator[_Kind]:
    for name, point in subject.points().items():
        for seed in range(subject.options.seeds if name == "start" else 1):
            yield _Kind(name, point, True, seed)
        if name == "start":
            yield _Kind(name, point, False, 0)
            if can_autocast(subject) and subject.exact:
                yield _Kind(name, point, True, 0, torch.bfloat16)


def _against_stored(subject: Subject, kind: _Kind) -> Found:
    network, arguments = subject.network, subject.draw(BATCH_SIZES[0], kind.seed)

    def stored() -> Ran:
        with stored_activations(network):
            return _step(network, arguments, kind)

    reversible, expected = _step(network, arguments, kind), stored()
    yield from compared(
        network,
        Pair(reversible.gradients, expected.gradients),
        f"relative error of the gradients at {kind.words}",
        subject.gradient_tolerance(kind.autocast),
        lambda: stored().gradients,
    )
    if kind.training:
        yield _state_behind(reversible, expected, kind)


def _step(network: nn.Module, arguments: Arguments, kind: _Kind) -> Ran:
    return step(network, arguments, training=kind.training, seed=kind.seed, autocast=kind.autocast)


def _state_behind(reversible: Ran, stored: Ran, kind: _Kind) -> Measurement:
    """Buffers and random state behind a step are those of a stored one."""
    other = [n for n, b in stored.buffers.items() if error([reversible.buffers[n]], [b])]
    if not torch.equal(reversible.random, stored.random):
        other.append("the random state")
    return Measurement(
        what=f"buffers and random states that a step leaves otherwise than a stored one, {kind.words}",
        value=float(len(other)),
        threshold=0.0,
        place=next(iter(other), None),
    )


# -- against float64 -----------------------------------------------------------------------------


def _against_float64(subject: Subject) -> Found:
    network, arguments = subject.network, subject.draw(SMALL_BATCH, 0)
    precise_arguments = argument_cast(arguments, torch.float64)
    precise = in_float64(network, precise_arguments)
    chain = subject.chains[0]
    for name, point in subject.points().items():
        with at_coefficients(network, *point):
            applied = (point[0], beta_of(chain))
            with at_coefficients(precise, *applied), by_the_equations(precise):
                truth = step(precise, precise_arguments).gradients
            yield from _judged(subject, arguments, truth, words(name, point))


def _judged(subject: Subject, arguments: Arguments, truth: Tensors, where: str) -> Found:
    """The errors of stored and of reversible gradients against the true ones."""
    network = subject.network

    def plain_step() -> Tensors:
        with by_the_equations(network):
            return step(network, arguments).gradients

    plain = Pair(plain_step(), truth).settled()
    reversible = Pair(step(network, arguments).gradients, truth).settled()
    allowed = {"reversible": (reversible, 0.0)}
    if not subject.exact:  # else the stored ones are the same bits, which was measured above
        with stored_activations(network):
            stored = Pair(step(network, arguments).gradients, truth).settled()
        allowed = {"stored": (stored, 0.0), "reversible": (reversible, subject.gradient_tolerance())}
    limit = thresholds.reference(plain.error(), subject.dtype)
    if not all(pair.error() <= limit + more < 1 for pair, more in allowed.values()):
        # A second look: are there kernels that do not repeat, and was the one plain run a lucky one?
        out = unstable(network, plain_step)
        if out:
            yield f"against float64 at {where}: left out, equal runs do not agree: {', '.join(sorted(out))}"
        names = set(plain.names) - out
        plain, allowed = plain.only(names), {way: (p.only(names), m) for way, (p, m) in allowed.items()}
        spread = _spread(network, arguments, truth, names)
        limit = thresholds.reference(max(plain.error(), spread), subject.dtype)
    for way, (pair, more) in allowed.items():
        what = f"relative error of {way} gradients against float64 at {where}"
        yield _shown(network, pair, what, limit + more, plain.error())


def _shown(network: nn.Module, pair: Pair, what: str, threshold: float, plain: float) -> Measurement:
    found = measured(network, pair, what, threshold)
    told = f"plain gradients of the same precision err by {plain:.2g}"
    return found.model_copy(update={"detail": f"{found.detail}; {told}" if found.detail else told})


@torch.no_grad()
def _spread(network: nn.Module, arguments: Arguments, truth: Tensors, names: set[str]) -> float:
    """The largest error of plain gradients when every weight is moved by an eps.

    A gradient jumps where a relu's input crosses zero, so one plain run that happens to cross none says too
    little about what rounding can do. This is measured only where a gradient is further off than that run.
    """
    generator = torch.Generator().manual_seed(0)
    kept = [(p, p.detach().clone()) for p in network.parameters() if p.is_floating_point()]
    worst = 0.0
    try:
        for _ in range(PERTURBED_RUNS):
            for parameter, value in kept:
                eps = torch.finfo(value.dtype).eps
                signs = torch.randint(-1, 2, value.shape, generator=generator).to(value)
                parameter.copy_(value * (1 + eps * signs))
            with by_the_equations(network), torch.enable_grad():
                worst = max(worst, Pair(step(network, arguments).gradients, truth, names).error())
    finally:
        for parameter, value in kept:
            parameter.copy_(value)
    return worst


CHECK = Check(run, by_block=True)
