"""What one forward through a chain leaves for its backward: the streams at the end, and little else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from revsurgeon.errors import ChainBrokenError, RevsurgeonError
from revsurgeon.reversible.arithmetic import Arithmetic, ExactArithmetic, Streams, coupled
from revsurgeon.reversible.chunks import Chunks
from revsurgeon.reversible.held import Held
from revsurgeon.reversible.record import Record, SegmentCall, Values
from revsurgeon.reversible.settings import Settings


@dataclass
class StepBack:
    """One step back under way, or a piece of it: y_{i-1} = x_i - G_i.

    Attributes:
        arithmetic: of the chain.
        dtype: of x as the branch sees it.
        x: before the segment, in the fewest bytes.
        behind: x behind it, until y is there.
        y: before the segment, once it is written; often where x behind it was. None if it is known already.
    """

    arithmetic: Arithmetic
    dtype: torch.dtype
    x: torch.Tensor
    behind: torch.Tensor | None
    y: torch.Tensor | None

    def value(self) -> torch.Tensor:
        """x as the branch sees it."""
        return self.arithmetic.value(self.x, self.dtype)

    def split(self, chunks: Chunks) -> list[StepBack]:
        """The step back of every piece."""
        x = chunks.split(self.x)
        # By the tensor: pieces of one that is both stay one tensor each.
        pieces = {id(t): chunks.split(t) for t in (self.behind, self.y) if t is not None}
        nothing = (None,) * len(x)
        behind, y = pieces.get(id(self.behind), nothing), pieces.get(id(self.y), nothing)
        return [StepBack(self.arithmetic, self.dtype, *part) for part in zip(x, behind, y, strict=True)]

    def complete(self, g: torch.Tensor) -> None:
        """Write y, given G at x."""
        if self.behind is not None and self.y is not None:
            self.arithmetic.previous_y(self.behind, g, self.y)
        self.behind = None


class Tape:
    """The records of one forward through a chain, and the way back.

    It lives as long as the graph of that forward. `streams_after` walks backwards from the end; a backward
    that starts in the middle (the loss uses a tap only) or that runs a second time walks again.
    """

    def __init__(self, arithmetic: Arithmetic, name: str, anchor_every: int = 0) -> None:
        self.arithmetic = arithmetic
        self.name = name
        self.anchor_every = anchor_every
        self._settings = Settings.now()
        self._settings_changed = False
        self._anchors: dict[int, Held] = {}  # streams behind a segment, by its index
        self.records: list[Record] = []
        self.streams: Streams | None = None  # the latest ones, while the chain runs
        self._version = 0  # of x among them: in float arithmetic it is what the blocks hand on
        self._end: Held | None = None
        self._cursor: tuple[int, Streams] | None = None
        self._own = False  # whether nobody else holds the streams at the cursor
        self._unpacked: tuple[int, Streams] | None = None  # what `previous_x` found stored
        self._largest = float("inf")  # magnitude on the grid; known when the range was checked
        self._start_y: torch.Tensor | None = None
        self._checks: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self._pass = -1  # the backward pass under way, by torch's number for it
        self.lock = threading.RLock()  # held while one segment goes back: two threads may share a graph
        self._keep_graph = False
        self._differentiated: int | None = None  # the first of the segments at the end that are done with

    def hold_end(self) -> Streams:
        """Called when the chain has run: keep its last streams, integers in four bytes where they fit."""
        assert self.streams is not None
        self._anchors.pop(len(self.records) - 1, None)
        ends = [self.streams.y.detach(), self.streams.x.detach()]
        self.streams = None  # so that each can go before the next one is there
        x, y = self.narrow(ends.pop()), self.narrow(ends.pop())
        self._end = self._held(x, y)
        return Streams(x, y)

    def advance(self, record: Record, x: torch.Tensor, arguments: Sequence[torch.Tensor]) -> Values:
        """Run the next segment on x as its branch sees it; the new x as its reader sees it, side outputs."""
        arithmetic = self.arithmetic
        assert self.streams is not None
        g, sides = record.first_run(x, arguments)
        before, y = self.streams.x, self.streams.y
        record.checksum = arithmetic.checksum(before)
        if not self.records:
            self._start_y = arithmetic.checksum(y)
        self.streams = None  # so that each can go before the next one is there
        next_x = arithmetic.next_x(y, g, reuse=True)
        del y, g
        next_y, kept = arithmetic.next_y(before)
        del before
        record.kept = None if kept is None else Held(kept)
        self.records.append(record)
        value = arithmetic.value(next_x, record.dtype)
        # An alias: what is returned gets a graph that leads back here, and must not be held from here.
        self.streams = Streams(next_x.detach(), next_y)
        self._version = next_x._version
        if self.anchor_every and len(self.records) % self.anchor_every == 0:
            self._anchors[len(self.records) - 1] = self._held(self.streams.x, self.streams.y)
        return value, sides

    def _held(self, x: torch.Tensor, y: torch.Tensor) -> Held:
        # Integers have checksums of their own, which are compared on the way back.
        return Held(x, y, checked=not isinstance(self.arithmetic, ExactArithmetic))

    def pass_by(self, call: SegmentCall, alpha: float, dtype: torch.dtype) -> Values:
        """Run a segment that needs no gradient, nor anything before it: there is no way back to it."""
        assert self.streams is not None
        x = self.arithmetic.value(self.streams.x, dtype)
        g, sides = call.run(x, alpha)
        self.streams = coupled(self.arithmetic, self.streams, g)
        return self.arithmetic.value(self.streams.x, dtype), sides

    def check_range(self) -> None:
        """In exact arithmetic: every stream of this run must have fitted the grid."""
        arithmetic = self.arithmetic
        if isinstance(arithmetic, ExactArithmetic) and self.streams is not None:
            sums = [r.checksum for r in self.records if r.checksum is not None]
            sums.append(arithmetic.checksum(self.streams.x))
            names = [f"{self.name}'s start", *(r.call.name for r in self.records)]
            found = torch.stack(sums).tolist()
            for name, checksum in zip(names, found, strict=True):
                arithmetic.check_range(checksum, name)
            self._largest = max(map(arithmetic.magnitude, found))

    def streams_after(self, index: int) -> Streams:
        """The streams behind the segment `index`, rebuilt as far as needed."""
        if self._cursor is None or self._cursor[0] < index:
            anchor = min((i for i in self._anchors if i >= index), default=None)
            self._cursor = self._at_end() if anchor is None else self._at(anchor)
            self._checks = []
        while self._cursor[0] > index:
            place = self._cursor[0]
            back = self._begin(place)
            back.complete(self.records[place].run_again(back.value()))
            self.end_step(place, back)
        return self._cursor[1]

    def begin_step(self, index: int) -> StepBack:
        """Begin the step back through the segment `index`. The caller completes it and calls `end_step`.

        In between nothing else of the streams is held, since a segment's differentiation is the peak of
        memory, unless the graph is kept.
        """
        self.streams_after(index)
        done = len(self.records) if self._differentiated is None else self._differentiated
        last = self._lets_go and index == done - 1  # nobody will start from behind it again
        if last:
            self._differentiated, self._end, self._own = index, None, True
        back = self._begin(index)
        if last:
            self.records[index].kept = None
            self._anchors = {i: held for i, held in self._anchors.items() if i < index}
        return back

    @property
    def _lets_go(self) -> bool:
        """Whether a pass is the last one: the graph is not kept, and the chain is through.

        It is not through yet where a hook asks for gradients of a block's output.
        """
        return not self._keep_graph and self.streams is None

    def _begin(self, index: int) -> StepBack:
        assert self._cursor is not None
        streams, self._cursor, record = self._cursor[1], None, self.records[index]
        behind, x = streams.x, self.previous_x(index, streams)
        del streams
        y = None
        if self._unpacked is None:
            now = self.arithmetic.checksum(x)
            if now is not None and record.checksum is not None:
                self._checks.append((record.call.name, record.checksum, now))
            y = self._room_for_y(record, behind)
        return StepBack(self.arithmetic, record.dtype, self.narrow(x), behind, y)

    def _room_for_y(self, record: Record, behind: torch.Tensor) -> torch.Tensor:
        """Where y before a segment is to be written: over x behind it, if nobody else reads that.

        In float arithmetic somebody may: x is what the blocks, and whoever hooks into them, have seen.
        """
        if isinstance(self.arithmetic, ExactArithmetic) and self._own and behind.stride() == record.stride_y:
            return behind
        return record.room_for_y(behind)

    def end_step(self, index: int, back: StepBack) -> None:
        """Go on from the streams before the segment `index`."""
        if self._unpacked is not None:  # once: an activation checkpoint around the chain allows no more
            self._cursor, self._unpacked, self._own = self._unpacked, None, False
            return
        assert back.y is not None
        self._cursor, self._own = (index - 1, Streams(back.x, back.y)), True
        start = self.arithmetic.checksum(back.y) if index == 0 else None
        if start is not None and self._start_y is not None:
            self._checks.append(("the chain's start", self._start_y, start))

    def narrow(self, stream: torch.Tensor) -> torch.Tensor:
        """A stream in the fewest bytes that hold it: integers in four, where they fit."""
        fits = isinstance(self.arithmetic, ExactArithmetic) and self._largest < 2.0**31
        return stream.to(torch.int32) if fits else stream

    def _at_end(self) -> tuple[int, Streams]:
        held = self._end.tensors() if self._end else None
        if held is None:
            if self.streams is None:
                raise RevsurgeonError(
                    f"backward runs a second time through {self.name}, whose streams have been let go.",
                    hint="Pass retain_graph=True to the first backward.",
                )
            if self.streams.x._version != self._version:
                raise ChainBrokenError(
                    f"what a block of {self.name!r} returned was changed in place before this gradient.",
                    hint="Change a copy (x.clone()), or exclude the block in the recipe.",
                )
            held = self.streams.x, self.streams.y
        self._own = False
        return len(self.records) - 1, Streams(*held)

    def _at(self, anchor: int) -> tuple[int, Streams]:
        self._own = False
        return anchor, Streams(*self._anchors[anchor].tensors())

    def previous_x(self, index: int, streams: Streams) -> torch.Tensor:
        """x before segment `index`: x_{i-1} = y_i / beta, or stored there."""
        self._unpacked = self._at(index - 1) if index - 1 in self._anchors else None
        if self._unpacked is not None:
            return self._unpacked[1].x
        record = self.records[index]
        kept = record.kept.tensors()[0] if record.kept else None
        return self.arithmetic.previous_x(streams.y, kept, record.stride_x)

    def begin_backward(self) -> None:
        """Called by every segment's backward; the first one of a pass sees to it that `finish` is called."""
        number = torch._C._current_graph_task_id()
        if number != self._pass:
            self._pass = number
            self._settings_changed = Settings.now() != self._settings
            self._keep_graph = torch._C._autograd._get_current_graph_task_keep_graph()
            # The pass may not go back to the chain's first segment; its checks are compared all the same.
            torch.autograd.Variable._execution_engine.queue_callback(self._compare)

    def as_in_forward(self) -> contextlib.AbstractContextManager[None]:
        """torch's settings as they were when the chain ran."""
        return self._settings.again() if self._settings_changed else contextlib.nullcontext()

    def finish(self) -> None:
        """Called after the backward of the first segment: compare checksums, and let go.

        Raises:
            ChainBrokenError: a segment did not repeat bit for bit.
        """
        self._compare()
        if self._lets_go:
            self._cursor = self._end = None
            self._anchors = {}
            for record in self.records:
                record.kept = None

    def _compare(self) -> None:
        checks, self._checks = self._checks, []
        if not checks:
            return
        first = torch.stack([before for _, before, _ in checks])
        second = torch.stack([after for _, _, after in checks])
        same = (first == second).all(dim=1).tolist()
        if not all(same):
            # x before segment i is y_i / beta, and y_i came out of the recomputation of segment i + 1,
            # which is the one checked before it.
            blamed = checks[max(same.index(False) - 1, 0)][0]
            raise ChainBrokenError(
                f"recomputing a segment of {self.name!r} gave other bits: its gradients are wrong.",
                where=f"{blamed} did not repeat",
                hint="Something in it is not deterministic (a kernel, or state outside its buffers). Try "
                "torch.use_deterministic_algorithms(True), convert with --arithmetic auto, which takes float "
                "for such segments, or exclude the block in the recipe.",
            )
