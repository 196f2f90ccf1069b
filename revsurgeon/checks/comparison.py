"""Two sets of gradients side by side: how far apart, where first, and what the kernels' own disorder is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from revsurgeon.checks.report import Measurement
from revsurgeon.checks.thresholds import REPEAT_FACTOR
from revsurgeon.checks.unwritten import unwritten_memory_filled
from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.coefficients import some_chains
from revsurgeon.rewiring.measure import same_bits
from revsurgeon.rewiring.unrewired import segment_parameters

Tensors = Mapping[str, torch.Tensor]

REPEATS = 3
"""How many more stored runs tell whether kernels repeat."""

NOT_REPEATED_AT_ALL = 1e-3
"""A gradient of which two equal runs differ by more than this is left out: it is not the runtime's doing."""


class Pair:
    """Two sets of tensors under the same names; `expected` is the yardstick.

    Args:
        actual, expected: on the same device; a name that only one of them has counts as infinitely far off.
        names: to look at, all by default.
    """

    def __init__(self, actual: Tensors, expected: Tensors, names: Iterable[str] | None = None) -> None:
        self.actual, self.expected = actual, expected
        self.names = sorted(expected.keys() | actual.keys() if names is None else names)
        self._parts: dict[str, tuple[float, float]] = {}

    def only(self, names: Iterable[str]) -> Pair:
        """The same pair for some of its names."""
        part = Pair(self.actual, self.expected, names)
        part._parts = self._parts
        return part

    def settled(self) -> Pair:
        """The same pair once all has been compared; it holds figures only, no tensors."""
        for name in self.names:
            self._part(name)
        self.actual, self.expected = {}, {}
        return self

    def error(self, names: Iterable[str] | None = None) -> float:
        """``||actual - expected|| / ||expected||`` over these names; 0 only where every bit is equal."""
        parts = [self._part(name) for name in (self.names if names is None else names)]
        difference, norm = sum(d for d, _ in parts), sum(n for _, n in parts)
        if difference == 0.0:
            return 0.0
        return max((difference / norm if norm else difference) ** 0.5, torch.finfo(torch.float64).tiny)

    def wrong(self, limit: float) -> list[str]:
        """The names whose own error is above a limit."""
        return [name for name in self.names if not self.error([name]) <= limit]

    def worst(self, names: Iterable[str] | None = None) -> str:
        """The name whose own error is the largest."""
        return max(self.names if names is None else names, key=lambda name: self.error([name]))

    def _part(self, name: str) -> tuple[float, float]:
        """Squares of the difference and of the yardstick; a difference of equal bits, and no other, is 0."""
        if name not in self._parts:
            actual, expected = self.actual.get(name), self.expected.get(name)
            if actual is None or expected is None or actual.shape != expected.shape:
                self._parts[name] = math.inf, 1.0
            else:
                norm = float(expected.double().square().sum())
                difference = 0.0
                if not same_bits(actual, expected):
                    difference = float((actual.double() - expected.double()).square().sum())
                    difference = max(difference, torch.finfo(torch.float64).tiny)
                self._parts[name] = difference, norm
        return self._parts[name]


def compared(
    network: nn.Module,
    pair: Pair,
    what: str,
    tolerance: float,
    repeat: Callable[[], Tensors],
    *,
    backwards: bool = True,
) -> Iterator[Measurement | str]:
    """Measure a pair whole and chain by chain.

    Args:
        network: rewired; the names are its parameters', and "input: NUMBER".
        pair: the gradients, or weights.
        what: words for the measurement.
        tolerance: the relative error that is allowed.
        repeat: makes `expected` once more. It is called only if they are too far apart: where kernels do not
            repeat (atomic additions on a GPU), two equal runs differ as well.
        backwards: an error spreads from the end of a chain to its start, so the last segment that is wrong is
            the place. If not, it is the one that is off most.
    """
    if not pair.error() <= tolerance:
        noise = list(_repeated(network, repeat, pair.expected))
        restless = {name for again in noise for name in again.wrong(0.0)}
        yield from _restless(pair, noise, sorted(restless), what)
        pair = pair.only(set(pair.names) - restless)
    yield measured(network, pair, what, tolerance, backwards=backwards)
    for chain in some_chains(network):
        own = {name for segment in segment_parameters(network, chain).values() for name in segment}
        inside = pair.only(own & set(pair.names))
        if inside.names:
            yield measured(network, inside, f"{what}, {chain.name}", tolerance, backwards=backwards)


def unstable(network: nn.Module, repeat: Callable[[], Tensors]) -> set[str]:
    """The names that two equal runs do not agree on at all, by more than `NOT_REPEATED_AT_ALL`."""
    noise = _repeated(network, repeat, repeat())
    return {name for again in noise for name in again.wrong(NOT_REPEATED_AT_ALL)}


def _repeated(network: nn.Module, repeat: Callable[[], Tensors], expected: Tensors) -> Iterator[Pair]:
    """Equal runs beside the first one, in memory that holds other things each time."""
    for number in range(REPEATS):
        with unwritten_memory_filled(network, number):
            again = repeat()
        yield Pair(again, expected).settled()


def _restless(pair: Pair, noise: list[Pair], names: list[str], what: str) -> Iterator[Measurement | str]:
    """What is left of a comparison for tensors that do not repeat themselves."""
    out = [n for n in names if not all(again.error([n]) <= NOT_REPEATED_AT_ALL for again in noise)]
    if out:
        more = f" and {len(out) - 3} more" if len(out) > 3 else ""
        yield f"{what}: left out, since two stored runs do not agree on them: {', '.join(out[:3])}{more}"
    kept = [name for name in names if name not in out]
    if kept:
        yield Measurement(
            what=f"{what}, where two stored runs differ",
            value=pair.error(kept),
            threshold=REPEAT_FACTOR * max(again.error(kept) for again in noise),
            place=pair.worst(kept),
        )


def measured(
    network: nn.Module, pair: Pair, what: str, tolerance: float, *, backwards: bool = True
) -> Measurement:
    """One figure for a pair, and the segment at which it goes wrong."""
    if not pair.names:
        return Measurement(what=what, value=0.0, threshold=tolerance, detail="there is nothing to compare")
    value = pair.error()
    by_segment: dict[str, float] = {}
    for chain in some_chains(network):
        by_segment |= _by_segment(network, chain, pair)
    place, detail = pair.worst() if value else None, None
    wrong = [segment for segment, found in by_segment.items() if not found <= tolerance]
    if not value <= tolerance and wrong:
        place = wrong[-1] if backwards else max(wrong, key=lambda segment: by_segment[segment])
        which = "first segment on the way back that goes wrong" if backwards else "segment that is off most"
        detail = f"the {which}, by {by_segment[place]:.2g}"
    return Measurement(
        what=what, value=value, threshold=tolerance, place=place, detail=detail, by_segment=by_segment
    )


def _by_segment(network: nn.Module, chain: Chain, pair: Pair) -> dict[str, float]:
    known = set(pair.names)
    found: dict[str, float] = {}
    for segment, parameters in segment_parameters(network, chain).items():
        names = [name for name in parameters if name in known]
        if names:
            found[segment] = pair.error(names)
    return found
