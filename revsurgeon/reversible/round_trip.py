"""Look into a chain while it runs, and walk back through its tape: what checks and measurements need.

Nothing here takes part in training. `watched` reports the streams around every segment, and `trips` keeps
what is needed to rebuild them from the end, as a backward pass would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from revsurgeon.reversible.arithmetic import Arithmetic, ExactArithmetic, Streams
from revsurgeon.reversible.chain import Chain, Run
from revsurgeon.reversible.record import SegmentCall
from revsurgeon.reversible.tape import Tape


@dataclass(frozen=True)
class Entry:
    """The start of a run: what the chain was handed, and the streams that it made of it."""

    chain: Chain
    run: Run
    x: torch.Tensor
    streams: Streams | None  # None at beta = 0, where there is one stream only


@dataclass(frozen=True)
class Passage:
    """One segment as it ran.

    Attributes:
        chain: that it belongs to.
        run: the pass that it is part of.
        call: the segment, with the arguments of this call.
        x: what the branch saw.
        before, after: the streams around it; None at beta = 0.
        output: x behind it, as the next reader sees it.
        recorded: its place on the tape; None if there is no way back to it.
    """

    chain: Chain
    run: Run
    call: SegmentCall
    x: torch.Tensor
    before: Streams | None
    after: Streams | None
    output: torch.Tensor
    recorded: int | None


@dataclass(frozen=True)
class Exit:
    """The end of a run: the last streams, and what the chain returned."""

    chain: Chain
    run: Run
    streams: Streams | None
    output: torch.Tensor


@dataclass
class Watch:
    """What to call, and when. Tensors that are handed over must not be changed."""

    entry: Callable[[Entry], None] = lambda _: None
    passage: Callable[[Passage], None] = lambda _: None
    exit: Callable[[Exit], None] = lambda _: None


@contextlib.contextmanager
def watched(chains: Sequence[Chain], watch: Watch) -> Iterator[None]:
    """Report every run of these chains inside this context."""
    for chain in chains:
        _watch(chain, watch)
    try:
        yield
    finally:
        for chain in chains:
            for name in ("_begin", "advance", "_end"):
                chain.__dict__.pop(name, None)


def _watch(chain: Chain, watch: Watch) -> None:
    begin, advance, end = chain._begin, chain.advance, chain._end

    def watched_begin(x: torch.Tensor) -> Run:
        run = begin(x)
        watch.entry(Entry(chain, run, x.detach(), streams_of(run)))
        return run

    def watched_advance(run: Run, call: SegmentCall) -> None:
        x, before, length = run.x.detach(), streams_of(run), len(run.tape.records) if run.tape else 0
        advance(run, call)
        recorded = length if run.tape is not None and len(run.tape.records) > length else None
        watch.passage(Passage(chain, run, call, x, before, streams_of(run), run.x.detach(), recorded))

    def watched_end(run: Run) -> torch.Tensor:
        streams = streams_of(run)
        output = end(run)
        watch.exit(Exit(chain, run, streams, output.detach()))
        return output

    # On the instance, where they are found before the class's own.
    chain.__dict__.update(_begin=watched_begin, advance=watched_advance, _end=watched_end)


def streams_of(run: Run) -> Streams | None:
    """The streams where a run stands: copies, since the next ones may take their memory."""
    streams = run.tape.streams if run.tape is not None else run.streams
    return None if streams is None else Streams(streams.x.detach().clone(), streams.y.detach().clone())


def in_units(arithmetic: Arithmetic, stream: torch.Tensor) -> torch.Tensor:
    """A stream in its own units, in float64: the integers of exact arithmetic times the grid's step."""
    if isinstance(arithmetic, ExactArithmetic):
        return stream.detach().double() * 2.0**-arithmetic.grid_bits
    return stream.detach().double()


@dataclass
class Trip:
    """One run of one chain: its tape, and the true streams around every segment that is on it.

    Attributes:
        chain: that ran.
        tape: what the run left.
        names: of the segments, in order.
        streams: before the first segment and behind every one, so one more than `names`.
    """

    chain: Chain
    tape: Tape
    names: list[str] = field(default_factory=list)
    streams: list[Streams] = field(default_factory=list)

    def back(self) -> Iterator[tuple[int, Streams]]:
        """Rebuild the streams from the end: (i, the streams before segment i), the last segment first."""
        for index in reversed(range(1, len(self.names))):
            found = self.tape.streams_after(index - 1)
            yield index, Streams(*(_kept(stream) for stream in (found.x, found.y)))
        if self.names:
            yield 0, self._one_back(0, self.tape.streams_after(0))

    def one_step_back(self, index: int) -> Streams:
        """The streams before a segment, rebuilt from the true ones behind it, with G at the true x."""
        return self._one_back(index, self.streams[index + 1], self.streams[index].x)

    def _one_back(self, index: int, after: Streams, x: torch.Tensor | None = None) -> Streams:
        tape, record = self.tape, self.tape.records[index]
        found = tape.previous_x(index, after)
        seen = found if x is None else x
        g = record.run_again(tape.arithmetic.value(seen, record.dtype))
        y = record.room_for_y(after.x)
        tape.arithmetic.previous_y(after.x, g, y)
        return Streams(found, _kept(y))


def _kept(stream: torch.Tensor) -> torch.Tensor:
    """A stream of the tape in memory of its own; integers, which may have come in four bytes, in float64."""
    return stream.clone() if stream.is_floating_point() else stream.to(torch.float64)


def trips(run_forward: Callable[[], Any], chains: Sequence[Chain]) -> tuple[list[Trip], Any]:
    """Run a network forward reversibly, and keep the true streams of every run of its chains.

    Args:
        run_forward: calls the network, with gradients enabled.
        chains: the network's.

    Returns:
        A trip for each run of a chain, in the order in which they began, and the forward's result; the
        graph that hangs on it must live as long as the trips are used.
    """
    found: dict[int, Trip] = {}

    def passage(passed: Passage) -> None:
        if passed.recorded is None or passed.run.tape is None:
            return
        assert passed.before is not None
        assert passed.after is not None
        tape = passed.run.tape
        trip = found.setdefault(id(tape), Trip(passed.chain, tape, streams=[passed.before]))
        trip.names.append(passed.call.name)
        trip.streams.append(passed.after)

    with watched(chains, Watch(passage=passage)):
        result = run_forward()
    return list(found.values()), result
