"""A chain: the coefficients of a run of segments, and the life cycle of one pass through them.

A *run* begins when the chain's first block is called, goes on from block to block as long as each one is
handed what the one before returned, and ends behind the last block, where the streams are merged. It
lives on the chain, one for each thread, because nothing else passes between two blocks but x.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.autograd import forward_ad

from revsurgeon.errors import ChainBrokenError, RevsurgeonError
from revsurgeon.reversible.arithmetic import (
    BETA_BITS,
    DEFAULT_GRID_BITS,
    Arithmetic,
    Streams,
    coupled,
    make_arithmetic,
)
from revsurgeon.reversible.handed import HandedOut, can_have_alias, is_alias
from revsurgeon.reversible.record import Record, SegmentCall
from revsurgeon.reversible.step import Couple, Fork, Merge, Start, Step, stand_in
from revsurgeon.reversible.tape import Tape

SMALLEST_BETA = 2.0**-BETA_BITS


@dataclass
class Run:
    """One pass through a chain."""

    how: str  # "plain" (beta = 0), "forward" (no gradient), "stored" or "reversible"
    alpha: float
    x: torch.Tensor  # as the next block sees it
    dtype: torch.dtype  # of x as the branches see it
    output_dtype: torch.dtype
    arithmetic: Arithmetic | None = None
    y: torch.Tensor | None = None  # the stand-in along which gradients flow
    streams: Streams | None = None
    tape: Tape | None = None
    position: int = -1
    handed: HandedOut | None = None  # x between two blocks
    sides: list[Any] = field(default_factory=list)  # what the block gives out beside the stream


@dataclass(eq=False)
class Chain:
    """A run of rewired blocks that are reversible together.

    Attributes:
        name: the common prefix of the blocks' paths.
        blocks: paths of the blocks in the order of their calls.
        segments: number of segments of each of them.
        merge: "normalized", (x_N + y_N) / (1 + beta), or "last", x_N.
        arithmetic: "float" or "exact".
        alpha: coefficient of the original skips, in [0, 1].
        beta: coefficient of the added ones: 0, or in [2**-16, 1].
        grid_bits: of exact arithmetic.
        anchors: in float arithmetic, store the streams behind every so many segments (0: only the last ones).
        chunks: run segments in so many pieces where these do not depend on one another (1: whole).
        copy_output: hand out a copy, because the network changes the chain's output in place.
        stored: backpropagate conventionally (set by `stored_activations`).
        compile_options: of torch.compile for the segments (set by `compile_segments`); None: not compiled.
        plan: how the coefficients are to move: arguments of `CoefficientSchedule`, as plain data.
        state: where a schedule stands, as plain data.
    """

    name: str
    blocks: tuple[str, ...]
    segments: tuple[int, ...]
    merge: str = "normalized"
    arithmetic: str = "float"
    alpha: float = 1.0
    beta: float = 0.0
    grid_bits: int = DEFAULT_GRID_BITS
    anchors: int = 0
    chunks: int = 1
    copy_output: bool = False
    stored: bool = False
    compile_options: dict[str, Any] | None = None
    plan: dict[str, Any] | None = None
    state: dict[str, Any] | None = None
    _runs: dict[int, Run] = field(default_factory=dict, repr=False)
    # What the last block returned in a run that another one began upon, by thread.
    _cut: dict[int, Callable[[], torch.Tensor | None]] = field(default_factory=dict, repr=False)
    # The place of the last block of a run that was let go of because the network dropped x, by thread.
    _lost: dict[int, int] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # A run belongs to one forward of one network.
        return {**self.__dict__, "_runs": {}, "_cut": {}, "_lost": {}}

    # -- life cycle --------------------------------------------------------------------------

    def enter(self, path: str, x: torch.Tensor) -> Run:
        """A block is called with x: begin a run, or go on with the one that x belongs to.

        Raises:
            ChainBrokenError: x is not what the block before returned.
        """
        thread = threading.get_ident()
        run = self._runs.get(thread)
        if run is not None and _is_same(x, run):
            run.position = self._position(path, run.position + 1)
            handed, run.x, run.handed = run.handed, x, None
            if run.how == "forward" and torch.is_grad_enabled():
                if x.grad_fn is not None:  # a reentrant checkpoint gave x a graph, which y does not have
                    raise self._broken(path)
                self._begin_gradients(run)
            if run.y is not None and x.grad_fn is None and handed is not None and handed.had_graph:
                run.y = run.y.detach()  # x was detached between the blocks, and y with it
            return run
        position = self._position(path, 0)
        recomputed = torch._C._current_graph_task_id() != -1  # a forward inside of a backward
        cut = self._cut.get(thread, _nothing)()
        last = self._lost.get(thread, position) if run is None else run.position
        changed = run is not None and run.handed is not None and run.handed.is_object(x)
        if changed or (position > 0 and (recomputed or x is cut or last < position)):
            raise self._broken(path)
        if run is not None and run.how != "plain":
            self._cut[thread] = weakref.ref(run.x) if run.handed is None else run.handed.reference
        run = self._begin(x)
        run.position = position
        self._lost.pop(thread, None)
        self._runs[thread] = run
        return run

    def _broken(self, path: str) -> ChainBrokenError:
        self.abandon()
        return ChainBrokenError(
            f"block {path!r} was not handed what the block before it returned.",
            where=f"chain {self.name!r}, from {self.blocks[0]!r} to {self.blocks[-1]!r}",
            hint="Activation checkpointing of the blocks, a hook that replaces an output, a second forward "
            "before the first one is through, or code that changes x between two blocks breaks the chain. "
            "Take it away (a reversible chain needs no checkpointing), or exclude the block in the recipe.",
        )

    def leave(self, run: Run) -> torch.Tensor:
        """A block is done: x for the next one, or the chain's output behind the last one."""
        if run.position < len(self.blocks) - 1:
            return self._hand_out(run)
        self._runs.pop(threading.get_ident(), None)
        return self._end(run)

    def _hand_out(self, run: Run) -> torch.Tensor:
        if run.how == "forward" and can_have_alias(run.x):
            run.x = fresh(run.x)  # in float arithmetic it is the stream itself, which the run holds
        x = run.x
        dropped = functools.partial(_let_go, weakref.ref(self), threading.get_ident())
        run.handed = HandedOut(x, None if run.how == "plain" else dropped)
        run.x = run.handed.x
        return x

    def abandon(self) -> None:
        """Forget the run under way (a block raised)."""
        self._runs.pop(threading.get_ident(), None)
        self._lost.pop(threading.get_ident(), None)

    def _position(self, path: str, start: int) -> int:
        """The place of a block from `start` on (a shared block has several)."""
        for position in range(start, len(self.blocks)):
            if self.blocks[position] == path:
                return position
        return self.blocks.index(path)

    def _begin(self, x: torch.Tensor) -> Run:
        dtype = x.dtype
        if self.beta == 0.0:
            return Run("plain", self.alpha, x, dtype, dtype)
        _refuse_transforms()
        compiled = self.compile_options
        backend = None if compiled is None else compiled.get("backend", "inductor")
        arithmetic = make_arithmetic(self.arithmetic, self.beta, self.grid_bits, backend=backend)
        if torch.is_autocast_enabled(x.device.type) and dtype != torch.float64:
            dtype = torch.float32  # streams are never kept in low precision; autocast casts for the branch
        with torch.no_grad():
            streams = arithmetic.start(x.detach())
        run = Run("forward", self.alpha, x, dtype, x.dtype, arithmetic, None, streams)

        def value() -> torch.Tensor:
            return fresh(arithmetic.value(streams.x, dtype))

        if torch.is_grad_enabled():
            self._begin_gradients(run)
            run.x, run.y = Start.apply(value, arithmetic.beta, x)
        else:
            run.x = value()
        return run

    def _begin_gradients(self, run: Run) -> None:
        """From here on the run has a way back: from its start, or from where `torch.no_grad()` ended."""
        run.how, run.y = "stored", stand_in(run.x)
        if not self.stored:
            assert run.arithmetic is not None
            anchors = self.anchors if self.arithmetic == "float" else 0
            run.how, run.tape = "reversible", Tape(run.arithmetic, self.name, anchors)
            run.tape.streams, run.streams = run.streams, None

    # -- segments ----------------------------------------------------------------------------

    def advance(self, run: Run, call: SegmentCall) -> None:
        """Run one segment."""
        if run.how == "plain":
            self._check_plain(run, call)
            # Whole, as the source runs it.
            run.x, sides = call.parted(call.function(call.block, run.x, run.alpha, *call.extras))
            run.sides += sides
        elif run.how == "reversible":
            self._advance_reversible(run, call)
        elif run.how == "stored":
            self._advance_stored(run, call)
        else:
            assert run.arithmetic is not None
            assert run.streams is not None
            g, sides = call.run(run.x, run.alpha)
            run.sides += sides
            run.streams = coupled(run.arithmetic, run.streams, g)
            run.x = run.arithmetic.value(run.streams.x, run.dtype)

    def _check_plain(self, run: Run, call: SegmentCall) -> None:
        if not (torch.is_grad_enabled() and call.block.training) or self.stored:
            return
        if run.x.requires_grad or any(p.requires_grad for p in call.parameters()):
            raise RevsurgeonError(
                f"chain {self.name!r} cannot be trained reversibly at beta = 0.",
                hint="Set a beta of at least 2**-16 (revsurgeon.set_coefficients; exact arithmetic "
                "affords small ones), or train inside `with revsurgeon.stored_activations(model):`.",
            )

    def _advance_reversible(self, run: Run, call: SegmentCall) -> None:
        assert run.tape is not None
        assert run.tape.streams is not None
        assert run.y is not None
        record = Record(call, run.alpha, run.dtype, run.tape.streams)
        arguments = [e for e, wants in zip(call.extras, record.wants_grad, strict=True) if wants]
        inputs = [*arguments, *record.parameters]
        if run.x.requires_grad or run.y.requires_grad or inputs:
            run.x, run.y, *sides = Step.apply(run.tape, record, run.x, run.y, *inputs)
        else:
            run.x, sides = run.tape.pass_by(call, run.alpha, run.dtype)
        run.sides += sides

    def _advance_stored(self, run: Run, call: SegmentCall) -> None:
        assert run.arithmetic is not None
        x, y = Fork.apply(run.x, run.arithmetic.beta)
        g, sides = replace(call, extras=_gathering(call.extras)).run(x, run.alpha)
        run.sides += sides

        def couple(g: torch.Tensor) -> torch.Tensor:
            assert run.arithmetic is not None
            assert run.streams is not None
            run.streams = coupled(run.arithmetic, run.streams, g)
            value = run.arithmetic.value(run.streams.x, run.dtype)
            run.streams = Streams(run.streams.x.detach(), run.streams.y)
            return value

        run.x, run.y = Couple.apply(couple, g, y, run.y)

    def _end(self, run: Run) -> torch.Tensor:
        if run.how == "plain":
            return run.x.clone() if self.copy_output else run.x
        arithmetic, streams = run.arithmetic, run.streams
        assert arithmetic is not None
        if run.tape is not None:
            run.tape.check_range()
            streams = run.tape.hold_end()

        def merged() -> torch.Tensor:
            assert streams is not None
            value = fresh(arithmetic.merge(streams, self.merge).to(run.output_dtype))
            return value.clone() if self.copy_output else value

        if run.how == "forward":
            return merged()
        output: torch.Tensor = Merge.apply(merged, arithmetic.beta, self.merge, run.x, run.y)
        return output

    # -- coefficients ------------------------------------------------------------------------

    def set(self, alpha: float | None = None, beta: float | None = None) -> None:
        """Change the coefficients for the runs that begin from now on.

        Raises:
            RevsurgeonError: a value that is out of range.
        """
        if alpha is not None:
            _check("alpha", alpha, 0.0)
        if beta is not None:
            _check("beta", beta, SMALLEST_BETA)
        self.alpha = self.alpha if alpha is None else float(alpha)
        self.beta = self.beta if beta is None else float(beta)


def _check(name: str, value: float, smallest: float) -> None:
    if not (value == 0.0 or smallest <= value <= 1.0):
        raise RevsurgeonError(
            f"{name} = {value} is out of range.",
            hint=f"{name} must be 0 or from {smallest:g} to 1.",
        )


def _refuse_transforms() -> None:
    """Refuse the transforms of torch.func that lose derivatives, or end in an error about internals."""
    if forward_ad._current_level >= 0:
        what = "forward-mode differentiation (jvp)"
    elif torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is not None:
        what = "torch.func (grad, vjp, vmap, ...)"
    elif torch.is_grad_enabled() and (torch.jit.is_tracing() or torch.compiler.is_exporting()):
        what = "tracing with gradients (torch.jit.trace, torch.export)"
    else:
        return
    raise RevsurgeonError(
        f"{what} does not go through a reversible chain.",
        hint="Use torch.autograd, which does. torch.vmap, torch.jit.trace and torch.export work inside "
        "torch.no_grad().",
    )


def _gathering(extras: list[Any]) -> list[Any]:
    """The arguments as views of their own, each of which adds up the gradients of its readers in one segment.

    A reversible segment hands on that sum. Without the views autograd would add the readers' gradients to the
    argument's one by one, which rounds differently. The first view is made last, so that its sum comes first.
    """
    seen = [e.view_as(e) if _has_graph(e) else e for e in reversed(extras)]
    return seen[::-1]


def _has_graph(extra: Any) -> bool:
    return isinstance(extra, torch.Tensor) and extra.requires_grad and not extra.is_leaf


def _nothing() -> None:
    """In place of a weak reference."""


def _is_same(x: torch.Tensor, run: Run) -> bool:
    """Whether x is what the last block returned."""
    return x is run.x or is_alias(x, run.x) if run.handed is None else run.handed.is_same(x)


def _let_go(chain: weakref.ref[Chain], thread: int, handed: HandedOut) -> None:
    """End a run whose x the network dropped between two blocks."""
    live = chain()
    run = None if live is None else live._runs.get(thread)
    if live is not None and run is not None and run.handed is handed:
        live._lost[thread] = run.position
        live._runs.pop(thread, None)


def fresh(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor object of its own, for autograd to attach a graph to."""
    return tensor.detach()
