"""Equations: every segment computes what the paper's equations say, at the coefficients of the manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from revsurgeon.checks import thresholds
from revsurgeon.checks.check import Check, Found
from revsurgeon.checks.reference import beta_of, reference_g
from revsurgeon.checks.report import Measurement
from revsurgeon.checks.steps import running
from revsurgeon.checks.subject import BATCH_SIZES, Subject, words
from revsurgeon.reversible.arithmetic import ExactArithmetic, Streams
from revsurgeon.reversible.chain import Run
from revsurgeon.reversible.coefficients import stored_activations
from revsurgeon.reversible.round_trip import Entry, Exit, Passage, Watch, in_units, watched
from revsurgeon.rewiring.measure import at_coefficients

WAYS = ("reversible", "stored", "without gradients")


def run(subject: Subject) -> Found:
    """Compare the streams around every segment with the equations, each from the true streams before it.

    Dr2Net (Zhao et al., CVPR 2024, equations 3 to 6), with y_0 = beta * x_0:

        y_0 = beta x_0      x_i = G_i(x_{i-1}; alpha) + y_{i-1}      y_i = beta x_{i-1}
        the chain's output: (x_N + y_N) / (1 + beta), or x_N

    They are evaluated a second time (`revsurgeon.checks.reference`), with an addition of the skip of its
    own, in float64 around the segment's code. Each segment starts from the streams that the runtime had, so
    errors do not add up, and the threshold is that of one segment: four eps of its least precise type, and
    for exact arithmetic the grid.
    """
    arguments = subject.draw(BATCH_SIZES[0], 0)
    for name, point in subject.points().items():
        ways = WAYS[2:] if subject.quick else WAYS if name == "start" else WAYS[:1]
        for way in ways:
            comparison = _Comparison()
            watch = Watch(comparison.entry, comparison.passage, comparison.exit)
            with (
                at_coefficients(subject.network, *point),
                _way(subject, way),
                watched(subject.chains, watch),
                running(subject.network),
            ):
                subject.network(*arguments[0], **arguments[1])
            yield comparison.measurement(
                f"relative error against the equations at {words(name, point)}, {way}"
            )


@dataclass
class _Comparison:
    """The errors of one forward, in order: the place, what of it, the error, and what it may be."""

    errors: list[tuple[str, str, float, float]] = field(default_factory=list)

    def entry(self, entered: Entry) -> None:
        """x_0 is what the chain was handed, and y_0 = beta * x_0."""
        if entered.streams is None:
            return
        place, x_0 = f"{entered.chain.name}: its start", entered.x.double()
        streams = _in_units(entered.run, entered.streams)
        self._add(entered.run, place, "x_0", streams.x, x_0, x_0)
        self._add(entered.run, place, "y_0", streams.y, beta_of(entered.chain) * x_0, x_0)

    def passage(self, passed: Passage) -> None:
        """x_i = G_i(x_{i-1}; alpha) + y_{i-1} and y_i = beta * x_{i-1}."""
        if passed.before is None or passed.after is None:
            return
        run, place = passed.run, passed.call.name
        before, after = _in_units(run, passed.before), _in_units(run, passed.after)
        seen = before.x.to(passed.x.dtype)
        self.errors.append((place, "what its branch saw", float(not torch.equal(passed.x, seen)), 0.0))
        g = reference_g(passed.call, seen, passed.chain.alpha)[0].detach()
        self._add(run, place, "x", after.x, g.double() + before.y, g)
        self._add(run, place, "y", after.y, beta_of(passed.chain) * before.x, before.x)

    def exit(self, left: Exit) -> None:
        """The streams are merged by the chain's rule."""
        if left.streams is None:
            return
        streams = _in_units(left.run, left.streams)
        merged = (streams.x + streams.y) / (1.0 + beta_of(left.chain))
        expected = streams.x if left.chain.merge == "last" else merged
        self._add(left.run, f"{left.chain.name}: its end", "output", left.output, expected, left.output)

    def _add(
        self,
        run: Run,
        place: str,
        what: str,
        actual: torch.Tensor,
        expected: torch.Tensor,
        operand: torch.Tensor,
    ) -> None:
        """Note an error relative to the operands, which is what rounding is relative to.

        The operand has the precision that the value was computed in.
        """
        scale = float(expected.double().norm() + operand.double().norm())
        stream = torch.float64 if run.dtype == torch.float64 else torch.float32
        limit = thresholds.rounding(stream, operand.dtype)
        if isinstance(run.arithmetic, ExactArithmetic):
            limit += thresholds.grid(run.arithmetic.grid_bits, actual.numel(), scale)
        difference = float((actual.double() - expected.double()).norm())
        self.errors.append((place, what, difference / scale if scale else difference, limit))

    def measurement(self, what: str) -> Measurement:
        """The first error that is too large, or else the one nearest to it."""
        wrong = [found for found in self.errors if not found[2] <= found[3]]
        told = wrong[0] if wrong else max(self.errors, key=lambda e: e[2] / e[3] if e[3] else e[2])
        by_segment: dict[str, float] = {}
        for place, _, value, _ in self.errors:
            by_segment[place] = max(by_segment.get(place, 0.0), value)
        place, part, value, limit = told
        return Measurement(
            what=what, value=value, threshold=limit, place=f"{place}: {part}", by_segment=by_segment
        )


def _in_units(run: Run, streams: Streams) -> Streams:
    assert run.arithmetic is not None
    return Streams(in_units(run.arithmetic, streams.x), in_units(run.arithmetic, streams.y))


@contextlib.contextmanager
def _way(subject: Subject, way: str) -> Iterator[None]:
    """Run the chains in one of the three ways inside this context."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(way != "without gradients"))
        if way == "stored":
            stack.enter_context(stored_activations(subject.network))
        yield


CHECK = Check(run, quick=True, by_block=True)
