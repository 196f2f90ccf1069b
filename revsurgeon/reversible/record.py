"""One run of one segment, and how to run it once more, with or without gradients."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from revsurgeon.errors import ChainBrokenError, RevsurgeonError
from revsurgeon.reversible.arithmetic import Streams
from revsurgeon.reversible.chunks import Chunks
from revsurgeon.reversible.held import Held
from revsurgeon.reversible.replay import ChangingBuffers, Replay
from revsurgeon.reversible.sharding import gathered

# What autograd ends a graph in: the node that adds up the gradient of a leaf.
_LEAF_NODE = type(get_gradient_edge(torch.zeros((), requires_grad=True)).node)


class WayBack(Protocol):
    """What a record needs of the streams that it is rebuilt from."""

    def value(self) -> torch.Tensor:
        """x as the branch saw it."""

    def split(self, chunks: Chunks) -> Sequence[WayBack]:
        """The same for every piece."""

    def complete(self, g: torch.Tensor) -> None:
        """Called once, with G(x; alpha)."""


Values = tuple[torch.Tensor, tuple[Any, ...]]
"""G, and what the block gives out beside the stream: tensors, and sizes that come with them."""


@dataclass
class SegmentMemory:
    """What is learned about a segment when it runs, and holds for later runs.

    Attributes:
        changing: the buffers that its forward changes.
    """

    changing: ChangingBuffers = field(default_factory=ChangingBuffers)


@dataclass
class SegmentCall:
    """One segment, bound to its live block and to the arguments of one call.

    Attributes:
        name: for messages.
        function: ``(block, x, alpha, *extras) -> G(x; alpha)``.
        block: the live block.
        extras: what the function reads besides the stream: tensors and constants.
        parameters: gives all parameters that it uses, each once.
        modules: gives all modules whose buffers it may change.
        memory: shared by all calls of the segment.
        chunks: how it is run piece by piece; None runs it whole.
        sides: how many values the function returns behind G: what the block gives out beside the stream.
    """

    name: str
    function: Callable[..., torch.Tensor]
    block: nn.Module
    extras: list[Any]
    parameters: Callable[[], list[torch.Tensor]]
    modules: Callable[[], list[nn.Module]]
    memory: SegmentMemory
    chunks: Chunks | None = None
    sides: int = 0

    def run(self, x: torch.Tensor, alpha: float) -> Values:
        """G(x; alpha) and the side outputs, in the caller's autograd mode."""
        function = self.function if self.chunks is None else self.chunks.piecewise(self.function)
        return self.parted(function(self.block, x, alpha, *self.extras))

    def parted(self, result: Any) -> Values:
        """What the function returned, as G and side outputs."""
        return (result[0], tuple(result[1:])) if self.sides else (result, ())


class Record:
    """One run of one segment: what is needed to run it backwards."""

    def __init__(self, call: SegmentCall, alpha: float, dtype: torch.dtype, streams: Streams) -> None:
        self.alpha = alpha
        self.dtype = dtype  # of x as the branch sees it
        self.replays: list[Replay] = []  # of each piece
        self.kept: Held | None = None
        self.stride_x, self.stride_y = streams.x.stride(), streams.y.stride()
        self.checksum: torch.Tensor | None = None
        self.wants_grad = [isinstance(e, torch.Tensor) and e.requires_grad for e in call.extras]
        self.was_leaf = [isinstance(e, torch.Tensor) and e.is_leaf for e in call.extras]
        # Detached: a graph that led back into this chain would keep the tape alive for ever.
        self.extras = [e.detach() if isinstance(e, torch.Tensor) else e for e in call.extras]
        self.call = replace(call, extras=[])
        parameters, self.modules = call.parameters(), call.modules()
        self.parameters = [p for p in parameters if p.requires_grad]
        self.frozen = [p for p in parameters if not p.requires_grad]
        self.watched = [*parameters, *(e for e in self.extras if isinstance(e, torch.Tensor))]
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        return [-1 if t.is_inference() else t._version for t in self.watched]

    def room_for_y(self, behind: torch.Tensor) -> torch.Tensor:
        """Memory for y before the segment, in the layout that it had, for values like x behind it."""
        if 0 in self.stride_y:
            return torch.empty_like(behind)
        return torch.empty_strided(behind.shape, self.stride_y, dtype=behind.dtype, device=behind.device)

    def check_unchanged(self) -> None:
        """Whether parameters, arguments and modules still are what the forward used.

        Raises:
            ChainBrokenError: one was changed in place, or a module was replaced.
        """
        modules = self.call.modules()
        if len(modules) != len(self.modules) or not all(map(operator.is_, modules, self.modules)):
            raise ChainBrokenError(
                "a module was replaced between forward and backward.",
                where=self.call.name,
                hint="Replace it before the forward, or after the backward.",
            )
        if self._versions() != self.versions:
            raise ChainBrokenError(
                "a parameter or an argument was changed in place between forward and backward.",
                where=self.call.name,
                hint="Run backward before the optimizer's step (and before anything else that writes to it).",
            )

    @contextlib.contextmanager
    def _trained_as_before(self) -> Iterator[None]:
        """Freeze and thaw parameters, inside this context, as they were in the forward."""
        moved = [p for p in self.parameters if not p.requires_grad] + [
            p for p in self.frozen if p.requires_grad
        ]
        for parameter in moved:
            parameter.requires_grad_(not parameter.requires_grad)
        try:
            yield
        finally:
            for parameter in moved:
                parameter.requires_grad_(not parameter.requires_grad)

    def first_run(self, x: torch.Tensor, arguments: Sequence[torch.Tensor]) -> Values:
        """G(x; alpha) and the side outputs, without keeping anything for autograd.

        It runs with gradients enabled all the same: some modules choose another kernel, with other bits,
        when they are disabled (nn.MultiheadAttention, LSTMs), and the second run needs them enabled. And it
        runs on what the outer graph holds: a tensor that a hook takes out of the segment then has a graph
        that leads on, or that says it was not kept, but none that ends here and loses a gradient.

        Args:
            x: as the branch sees it, in the outer graph.
            arguments: those of the extras that need a gradient, likewise.
        """
        given = iter(arguments)
        extras = [next(given) if wants else e for e, wants in zip(self.extras, self.wants_grad, strict=True)]
        results = []
        sides: tuple[Any, ...] = ()
        with torch.enable_grad():
            pieces = self._pieces(x if x.requires_grad else x.detach().requires_grad_())
        for piece in pieces:
            replay = Replay()
            self.replays.append(replay)
            with replay.noting(self.modules, x.device, self.call.memory.changing), _kept_nowhere():
                g, sides = self._run(self._seen(piece), extras)
                results.append(g.detach())
        return self._joined(results), tuple(_own(side, x) for side in sides)

    def run_again(self, x: torch.Tensor) -> torch.Tensor:
        """The same value once more, without a graph."""
        self.check_unchanged()
        results = []
        with self._trained_as_before():
            for piece, replay in zip(self._pieces(x), self.replays, strict=True):
                with gathered(self.call.block), replay.again(x.device), _kept_nowhere():
                    results.append(self._run(*self._leaves(self._seen(piece)))[0].detach())
        return self._joined(results)

    def differentiate(
        self,
        back: WayBack,
        grad: torch.Tensor | None,
        side_grads: Sequence[torch.Tensor | None] = (),
    ) -> list[torch.Tensor | None]:
        """Run once more and backpropagate.

        Args:
            back: gives x as the branch saw it, and is completed with G(x; alpha).
            grad: of G(x; alpha).
            side_grads: of the side outputs.

        Returns:
            The gradients of x, of the arguments that need one, and of the parameters.
        """
        with self._trained_as_before():
            if self.call.chunks is None:
                return self._differentiate_whole(back, grad, side_grads)
            return self._differentiate_pieces(self.call.chunks, back, grad)

    def _differentiate_whole(
        self, back: WayBack, grad: torch.Tensor | None, side_grads: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        (g, sides), leaves = self._run_for_gradient(back.value(), self.replays[0])
        back.complete(g.detach())
        pairs = zip(sides, side_grads or [None] * len(sides), strict=True)
        tensors = [(side, found) for side, found in pairs if isinstance(side, torch.Tensor)]
        return gradients([(g, grad), *tensors], leaves)

    def _differentiate_pieces(
        self, chunks: Chunks, back: WayBack, grad: torch.Tensor | None
    ) -> list[torch.Tensor | None]:
        pieces = back.split(chunks)
        grads = [None] * len(pieces) if grad is None else list(chunks.split(grad))
        of_x: list[torch.Tensor | None] = []
        of_rest = _Sums()
        # Backwards, as autograd goes through the pieces of a stored chain, so that sums have its order.
        for piece, piece_grad, replay in zip(pieces[::-1], grads[::-1], self.replays[::-1], strict=True):
            (g, _), leaves = self._run_for_gradient(chunks.piece(piece.value()), replay)
            piece.complete(g.detach())
            found = gradients([(g, piece_grad)], leaves)
            del g, leaves
            of_x.insert(0, found.pop(0))
            of_rest.add(found)
        known = [piece for piece in of_x if piece is not None]
        return [chunks.join(known) if len(known) == len(of_x) else None, *of_rest.sums]

    def _pieces(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x,) if self.call.chunks is None else self.call.chunks.split(x)

    def _seen(self, piece: torch.Tensor) -> torch.Tensor:
        return piece if self.call.chunks is None else self.call.chunks.piece(piece)

    def _joined(self, pieces: list[torch.Tensor]) -> torch.Tensor:
        return pieces[0] if self.call.chunks is None else self.call.chunks.join(pieces)

    def _run_for_gradient(self, x: torch.Tensor, replay: Replay) -> tuple[Values, list[torch.Tensor]]:
        """The same values with their graph, and the leaves to differentiate by: x, arguments, parameters."""
        with replay.again(x.device), torch.enable_grad():
            leaf, extras = self._leaves(x)
            values = self._run(leaf, extras)
        wanted = [e for e, wants in zip(extras, self.wants_grad, strict=True) if wants]
        leaves = [leaf, *wanted, *self.parameters]
        sides = [side for side in values[1] if isinstance(side, torch.Tensor)]
        self._check_leaves([values[0], *sides], leaves)
        return values, leaves

    def _leaves(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        extras = [
            e.detach().requires_grad_() if wants else e
            for e, wants in zip(self.extras, self.wants_grad, strict=True)
        ]
        return x.detach().requires_grad_(), extras

    def _run(self, leaf: torch.Tensor, extras: Sequence[Any]) -> Values:
        # Autocast shares one low-precision copy of a leaf among all its readers, and so would add their
        # gradients in low precision. In a stored chain x is no leaf; nor is it here.
        x = leaf.view_as(leaf)
        seen = [
            e.view_as(e) if wants and not was_leaf else e
            for e, wants, was_leaf in zip(extras, self.wants_grad, self.was_leaf, strict=True)
        ]
        return self.call.parted(self.call.function(self.call.block, x, self.alpha, *seen))

    def _check_leaves(self, roots: list[torch.Tensor], leaves: list[torch.Tensor]) -> None:
        """Every tensor that the segment's graph ends in must be one whose gradient is returned.

        Raises:
            ChainBrokenError: another one is reached; its gradient would be lost without a word.
        """
        leaf_ids = {id(leaf) for leaf in leaves if leaf.is_leaf}
        known = {(leaf.grad_fn, leaf.output_nr) for leaf in leaves if not leaf.is_leaf}
        stack = [root.grad_fn for root in roots if root.grad_fn is not None]
        seen = set(stack)
        while stack:
            node = stack.pop()
            variable = getattr(node, "variable", None) if type(node) is _LEAF_NODE else None
            if variable is not None and id(variable) not in leaf_ids:
                raise ChainBrokenError(
                    "the segment uses a tensor that needs a gradient and is neither an argument nor a "
                    "parameter of the modules that it calls.",
                    where=f"{self.call.name}: a tensor of shape {tuple(variable.shape)}",
                    hint="Make it an argument of the block or a parameter of one of its modules, or exclude "
                    "the block in the recipe. (FullyShardedDataParallel shows the parameters that it shards "
                    "only with use_orig_params=True.)",
                )
            for edge in node.next_functions:
                if edge[0] is not None and edge[0] not in seen and edge not in known:
                    seen.add(edge[0])
                    stack.append(edge[0])


@contextlib.contextmanager
def _kept_nowhere() -> Iterator[None]:
    """Run with gradients enabled, and keep no tensor for backward."""
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda _: None, _never):
        yield


def _never(_: Any) -> torch.Tensor:
    raise RevsurgeonError(
        "a tensor from inside a segment is differentiated (one that a hook took out, or attention weights); "
        "a reversible chain does not keep the graph inside its segments.",
        hint="Take the blocks' own outputs instead, or use `with revsurgeon.stored_activations(model):`.",
    )


def _own(side: Any, x: torch.Tensor) -> Any:
    """A side output without its graph, in memory that is not the stream's."""
    if not isinstance(side, torch.Tensor):
        return side
    side = side.detach()
    shared = side.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return side.clone() if shared else side


def gradients(
    roots: list[tuple[torch.Tensor, torch.Tensor | None]], leaves: list[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Gradients of a segment's values by its leaves, parameters' own hooks left to the outer backward."""
    given = [(root, grad.to(root.dtype)) for root, grad in roots if grad is not None and root.requires_grad]
    if not given:
        return [None] * len(leaves)
    values, grads = zip(*given, strict=True)
    # A hook on a parameter would run here, and once more when the outer graph gets to the parameter.
    hooks = [(leaf, leaf._backward_hooks) for leaf in leaves if leaf._backward_hooks]
    for leaf, _ in hooks:
        leaf._backward_hooks = None
    try:
        return list(torch.autograd.grad(values, leaves, grads, allow_unused=True))
    finally:
        for leaf, saved in hooks:
            leaf._backward_hooks = saved


class _Sums:
    """Gradients of what all pieces share, added up piece by piece."""

    def __init__(self) -> None:
        self.sums: list[torch.Tensor | None] = []
        self._own: list[bool] = []  # whether a sum has memory of its own; a gradient may share another's

    def add(self, found: list[torch.Tensor | None]) -> None:
        """Add one piece's, and empty the list: each is let go when it is added."""
        if not self.sums:
            self.sums, self._own = [None] * len(found), [False] * len(found)
        for place in reversed(range(len(found))):
            present, new = self.sums[place], found.pop()
            if present is None or new is None:
                self.sums[place] = new if present is None else present
            elif self._own[place]:
                present.add_(new)
            else:
                self.sums[place], self._own[place] = present + new, True
