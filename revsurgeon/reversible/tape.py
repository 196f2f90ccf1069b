"""What one forward through a chain leaves for its backward: the streams at the end, and little else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from revsurgeon.errors import ChainBrokenError, RevsurgeonError
from revsurgeon.reversible.arithmetic import Arithmetic, ExactArithmetic, Streams
from revsurgeon.reversible.replay import ChangingBuffers, Replay


@dataclass
class SegmentMemory:
    """What is learned about a segment when it runs, and holds for later runs.

    Attributes:
        changing: the buffers that its forward changes.
        checked: the parameters (by identity) for which its graph was seen to hold no others.
    """

    changing: ChangingBuffers = field(default_factory=ChangingBuffers)
    checked: tuple[int, ...] | None = None


@dataclass
class SegmentCall:
    """One segment, bound to its live block and to the arguments of one call.

    Attributes:
        name: for messages.
        function: ``(block, x, alpha, *extras) -> G(x; alpha)``.
        block: the live block.
        extras: what the function reads besides the stream: tensors and constants.
        uses: gives all parameters that it uses, each once, and all modules whose buffers it may change.
        memory: shared by all calls of the segment.
    """

    name: str
    function: Callable[..., torch.Tensor]
    block: nn.Module
    extras: list[Any]
    uses: Callable[[], tuple[list[torch.Tensor], list[nn.Module]]]
    memory: SegmentMemory


class Held:
    """Tensors kept for backward the way autograd keeps them.

    They go through the caller's saved-tensor hooks (so that what is stored can be counted, or moved to the
    CPU), and a change in place is found when they are taken out.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        with torch.enable_grad():
            anchor = torch.empty(0, device="cpu", requires_grad=True)
            self._handle: torch.Tensor | None = _Keep.apply(anchor, *tensors)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors.

        Raises:
            RuntimeError: they were changed in place (torch's own message), or let go.
        """
        if self._handle is None:
            raise RevsurgeonError(
                "backward runs a second time through a chain whose streams have been let go.",
                hint="Pass retain_graph=True to the first backward.",
            )
        return self._handle.grad_fn.saved_tensors  # type: ignore[union-attr]

    def let_go(self) -> None:
        """Free the memory."""
        self._handle = None


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (None,) * (1 + len(ctx.saved_tensors))


class Record:
    """One run of one segment: what is needed to run it backwards."""

    def __init__(self, call: SegmentCall, alpha: float, dtype: torch.dtype, streams: Streams) -> None:
        self.alpha = alpha
        self.dtype = dtype  # of x as the branch sees it
        self.replay = Replay()
        self.kept: Held | None = None
        self.stride_x, self.stride_y = streams.x.stride(), streams.y.stride()
        self.checksum: torch.Tensor | None = None
        self.wants_grad = [isinstance(e, torch.Tensor) and e.requires_grad for e in call.extras]
        self.was_leaf = [isinstance(e, torch.Tensor) and e.is_leaf for e in call.extras]
        # Detached: a graph that led back into this chain would keep the tape alive for ever.
        self.extras = [e.detach() if isinstance(e, torch.Tensor) else e for e in call.extras]
        self.call = replace(call, extras=[])
        parameters, self.modules = call.uses()
        self.parameters = [p for p in parameters if p.requires_grad]
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        watched = [*(e for e in self.extras if isinstance(e, torch.Tensor)), *self.parameters]
        return [-1 if t.is_inference() else t._version for t in watched]

    def check_unchanged(self) -> None:
        """Whether parameters and arguments still are what the forward used.

        Raises:
            ChainBrokenError: one was changed in place.
        """
        if self._versions() != self.versions:
            raise ChainBrokenError(
                "a parameter or an argument was changed in place between forward and backward.",
                where=self.call.name,
                hint="Run backward before the optimizer's step (and before anything else that writes to it).",
            )

    def first_run(self, x: torch.Tensor) -> torch.Tensor:
        """G(x; alpha) without keeping anything for autograd.

        It runs with gradients enabled all the same: some modules choose another kernel, with other bits,
        when they are disabled (nn.MultiheadAttention, LSTMs), and the second run needs them enabled.
        """
        with self.replay.noting(self.modules, x.device, self.call.memory.changing), _kept_nowhere():
            return self._run(*self._leaves(x)).detach()

    def run_again(self, x: torch.Tensor) -> torch.Tensor:
        """The same value once more, without a graph."""
        with self.replay.again(x.device), _kept_nowhere():
            return self._run(*self._leaves(x)).detach()

    def run_for_gradient(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The same value with its graph, and the leaves to differentiate by: x, arguments, parameters."""
        with self.replay.again(x.device), torch.enable_grad():
            leaf, extras = self._leaves(x)
            g = self._run(leaf, extras)
        wanted = [e for e, wants in zip(extras, self.wants_grad, strict=True) if wants]
        leaves = [leaf, *wanted, *self.parameters]
        self._check_leaves(g, leaves)
        return g, leaves

    def _leaves(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        extras = [
            e.detach().requires_grad_() if wants else e
            for e, wants in zip(self.extras, self.wants_grad, strict=True)
        ]
        return x.detach().requires_grad_(), extras

    def _run(self, leaf: torch.Tensor, extras: Sequence[Any]) -> torch.Tensor:
        # Autocast shares one low-precision copy of a leaf among all its readers, and so would add their
        # gradients in low precision. In a stored chain x is no leaf; nor is it here.
        x = leaf.view_as(leaf)
        seen = [
            e.view_as(e) if wants and not was_leaf else e
            for e, wants, was_leaf in zip(extras, self.wants_grad, self.was_leaf, strict=True)
        ]
        return self.call.function(self.call.block, x, self.alpha, *seen)

    def _check_leaves(self, g: torch.Tensor, leaves: list[torch.Tensor]) -> None:
        """Every tensor that the segment's graph ends in must be one whose gradient is returned.

        Raises:
            ChainBrokenError: another one is reached; its gradient would be lost without a word.
        """
        parameters = tuple(id(p) for p in self.parameters)
        if self.call.memory.checked == parameters:
            return
        known = {id(leaf) for leaf in leaves}
        seen, stack = set(), [g.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) not in known:
                raise ChainBrokenError(
                    "the segment uses a tensor that needs a gradient and is neither an argument nor a "
                    "parameter of the modules that it calls.",
                    where=f"{self.call.name}: a tensor of shape {tuple(variable.shape)}",
                    hint="Make it an argument of the block or a parameter of one of its modules, or exclude "
                    "the block in the recipe.",
                )
            stack += [following for following, _ in node.next_functions]
        self.call.memory.checked = parameters


class Tape:
    """The records of one forward through a chain, and the way back.

    It lives as long as the graph of that forward. `streams_after` walks backwards from the end; a backward
    that starts in the middle (the loss uses a tap only) or that runs a second time walks again.
    """

    def __init__(self, arithmetic: Arithmetic, name: str) -> None:
        self.arithmetic = arithmetic
        self.name = name
        self.records: list[Record] = []
        self.streams: Streams | None = None  # the latest ones, while the chain runs
        self._end: Held | None = None
        self._cursor: tuple[int, Streams] | None = None
        self._largest = float("inf")  # magnitude on the grid; known when the range was checked
        self._start_y: torch.Tensor | None = None
        self._checks: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self._pass = -1  # the backward pass under way, by torch's number for it
        self._keep_graph = False

    def hold_end(self) -> None:
        """Called when the chain has run: keep its last streams, integers in four bytes where they fit."""
        if self.streams is None:
            return
        x, y = self.streams.x.detach(), self.streams.y.detach()
        if isinstance(self.arithmetic, ExactArithmetic) and self._largest < 2.0**31:
            x, y = x.to(torch.int32), y.to(torch.int32)
        self._end, self.streams = Held(x, y), None

    def advance(self, record: Record, x: torch.Tensor) -> torch.Tensor:
        """Run the next segment on x as its branch sees it; the new x as its reader sees it."""
        arithmetic, streams = self.arithmetic, self.streams
        assert streams is not None
        g = record.first_run(x)
        record.checksum = arithmetic.checksum(streams.x)
        if not self.records:
            self._start_y = arithmetic.checksum(streams.y)
        streams, kept = arithmetic.couple(streams, g)
        record.kept = None if kept is None else Held(kept)
        self.records.append(record)
        value = arithmetic.value(streams, record.dtype)
        # An alias: what is returned gets a graph that leads back here, and must not be held from here.
        self.streams = Streams(streams.x.detach(), streams.y)
        return value

    def pass_by(self, call: SegmentCall, alpha: float, dtype: torch.dtype) -> torch.Tensor:
        """Run a segment that needs no gradient, nor anything before it: there is no way back to it."""
        assert self.streams is not None
        x = self.arithmetic.value(self.streams, dtype)
        g = call.function(call.block, x, alpha, *call.extras)
        self.streams, _ = self.arithmetic.couple(self.streams, g, keep=False)
        return self.arithmetic.value(self.streams, dtype)

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
            held = self._end.tensors() if self._end else None
            if held is None:
                if self.streams is None:
                    raise RevsurgeonError(
                        f"backward runs a second time through {self.name}, whose streams have been let go.",
                        hint="Pass retain_graph=True to the first backward.",
                    )
                held = self.streams.x, self.streams.y
            if not held[0].is_floating_point():
                held = held[0].to(torch.float64), held[1].to(torch.float64)
            self._cursor, self._checks = (len(self.records) - 1, Streams(*held)), []
        while self._cursor[0] > index:
            place, streams = self._cursor
            x = self.previous_x(place, streams)
            record = self.records[place]
            g = record.run_again(self.arithmetic.value(Streams(x, x), record.dtype))
            self.step_back(place, streams, x, g)
        return self._cursor[1]

    def previous_x(self, index: int, streams: Streams) -> torch.Tensor:
        """x before segment `index`: x_{i-1} = y_i / beta."""
        record = self.records[index]
        kept = record.kept.tensors()[0] if record.kept else None
        return self.arithmetic.previous_x(streams, kept, record.stride_x)

    def step_back(self, index: int, streams: Streams, x: torch.Tensor, g: torch.Tensor) -> None:
        """Complete the streams before segment `index`: y_{i-1} = x_i - G_i."""
        record = self.records[index]
        y = self.arithmetic.previous_y(streams, g.detach(), record.stride_y)
        self._cursor = index - 1, Streams(x, y)
        now = self.arithmetic.checksum(x)
        if now is not None and record.checksum is not None:
            self._checks.append((record.call.name, record.checksum, now))
        start = self.arithmetic.checksum(y) if index == 0 else None
        if start is not None and self._start_y is not None:
            self._checks.append(("the chain's start", self._start_y, start))

    def begin_backward(self) -> None:
        """Called by every segment's backward; the first one of a pass sees to it that `finish` is called."""
        number = torch._C._current_graph_task_id()
        if number != self._pass:
            self._pass = number
            self._keep_graph = torch._C._autograd._get_current_graph_task_keep_graph()
            # The pass may not go back to the chain's first segment; its checks are compared all the same.
            torch.autograd.Variable._execution_engine.queue_callback(self._compare)

    def finish(self) -> None:
        """Called after the backward of the first segment: compare checksums, and let go.

        Raises:
            ChainBrokenError: a segment did not repeat bit for bit.
        """
        self._compare()
        if not self._keep_graph:
            self._cursor = self._end = self.streams = None
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
                "torch.use_deterministic_algorithms(True), or exclude the block in the recipe.",
            )


@contextlib.contextmanager
def _kept_nowhere() -> Iterator[None]:
    """Run with gradients enabled, and keep no tensor for backward."""
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda _: None, _never):
        yield


def _never(_: Any) -> torch.Tensor:
    raise RevsurgeonError("a graph that was not kept is differentiated")
