"""The forward of a rewired block: the block's own code, cut into segments that its chain runs.

It is an attribute of the block, which keeps its class, its name, its parameters and its hooks. The
graphs are made when a kind of call first happens (training or evaluation, another rank or dtype, another
argument left out), and kept.
"""

from __future__ import annotations

import contextlib
import functools
import inspect as python_inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.flow import SegmentError
from revsurgeon.anatomy.functions import compile_graph
from revsurgeon.anatomy.inspect import check_arguments, inline_set
from revsurgeon.anatomy.probe import has_hooks, untouched
from revsurgeon.anatomy.proxies import CONSTANT_TYPES, TraceError
from revsurgeon.anatomy.segment import BlockGraphs, segment_block
from revsurgeon.anatomy.trace import Trace, trace_block
from revsurgeon.errors import ChainBrokenError, UnsupportedModelError
from revsurgeon.inference_mode import outside_inference_mode
from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.chunks import Chunks
from revsurgeon.reversible.record import SegmentCall, SegmentMemory
from revsurgeon.reversible.sharding import refuse_sharded_parts
from revsurgeon.rewiring.chunking import independent_dimension
from revsurgeon.rewiring.outside_export import outside_export, stand_ins

_SIMPLE = frozenset({bool, int, float, str, type(None)})


@dataclass
class PlannedSegment:
    """A segment's compiled function and what it reads."""

    name: str
    function: Callable[..., torch.Tensor]
    extras: tuple[int, ...]
    branch: tuple[str, ...]
    attributes: tuple[str, ...]
    sides: int = 0
    memory: SegmentMemory = field(default_factory=SegmentMemory)
    _compiled: tuple[dict[str, Any], Callable[..., torch.Tensor]] | None = None
    _dimensions: dict[torch.Size, int | None] = field(default_factory=dict)
    _made_of: list[Any] = field(default_factory=list)

    def bind(self, block: nn.Module, leaves: list[Any], options: dict[str, Any] | None = None) -> SegmentCall:
        """The segment for one call of the live block, compiled if there are options for torch.compile."""
        extras = [leaves[i] for i in self.extras]
        function = self.function if options is None else self._compile(options)
        parameters = functools.partial(self.parameters, block)
        modules = functools.partial(self.modules, block)
        return SegmentCall(
            self.name, function, block, extras, parameters, modules, self.memory, sides=self.sides
        )

    def cut(self, call: SegmentCall, x: torch.Tensor, alpha: float, count: int) -> None:
        """Have a call run in `count` pieces, if that is the same as running it whole."""
        dimension = self.dimension_of(call, x, lambda whole: independent_dimension(whole, x, alpha))
        call.chunks = None if dimension is None else Chunks(dimension, count)

    def dimension_of(
        self, call: SegmentCall, x: torch.Tensor, find: Callable[[SegmentCall], int | None]
    ) -> int | None:
        """Along which dimension of the stream a call may be cut, found once for its shape and modules.

        Args:
            call: one that reads or gives out something beside the stream is never cut.
            x: the stream.
            find: gives the dimension of a call that is not compiled.
        """
        made_of = [(m, *m._forward_hooks, *m._forward_pre_hooks) for m in call.modules()]
        if made_of != self._made_of:  # other layers may mix what these kept apart
            self._made_of, self._dimensions = made_of, {}
        if x.shape not in self._dimensions:
            cannot = call.extras or call.sides
            self._dimensions[x.shape] = None if cannot else find(replace(call, function=self.function))
        return self._dimensions[x.shape]

    def _compile(self, options: dict[str, Any]) -> Callable[..., torch.Tensor]:
        if self._compiled is None or self._compiled[0] != options:
            compiled = torch.compile(self.function, **options)

            def run(block: nn.Module, x: torch.Tensor, alpha: float, *extras: Any) -> torch.Tensor:
                # A number would be compiled in, and compiled again for every step of a schedule.
                result: torch.Tensor = compiled(block, x, torch.tensor(alpha, dtype=torch.float64), *extras)
                return result

            self._compiled = options, run
        return self._compiled[1]

    def modules(self, block: nn.Module) -> list[nn.Module]:
        """The modules that it calls, with all that is in them, and those that own a tensor that it reads."""
        owners = (block.get_submodule(path.rpartition(".")[0]) for path in self.attributes)
        return list({id(module): module for module in (*self._called(block), *owners)}.values())

    def parameters(self, block: nn.Module) -> list[torch.Tensor]:
        """The parameters that it uses, each once, and other tensors with a gradient that it reads."""
        found: list[torch.Tensor] = [
            p for module in self._called(block) for p in module._parameters.values() if p is not None
        ]
        for path in self.attributes:
            owner, _, name = path.rpartition(".")
            tensor = getattr(block.get_submodule(owner), name)
            if isinstance(tensor, torch.Tensor) and (
                tensor.requires_grad or isinstance(tensor, nn.Parameter)
            ):
                found.append(tensor)
        return list({id(tensor): tensor for tensor in found}.values())

    def _called(self, block: nn.Module) -> list[nn.Module]:
        return [module for path in self.branch for module in block.get_submodule(path).modules()]


@dataclass
class Plan:
    """What one kind of call does."""

    segments: list[PlannedSegment]
    finish: Callable[..., Any] | None
    finish_extras: tuple[int, ...]
    specialised: bool
    inlined: frozenset[str]


Cut = tuple[BlockGraphs, bool, frozenset[str]]
"""A block's graphs, whether they hold for these shapes only, and what was inlined for them."""


class RewiredForward:
    """Replaces ``block.forward``.

    Args:
        block: the live block.
        chain: that it belongs to.
        path: of the block in the network.
        stream: name (or position) of the forward's parameter that takes the stream.
        output: place of the stream among the flattened outputs.
        segments: how many segments the block has, in every kind of call.
        granularity: "segment" or "block".
    """

    def __init__(
        self,
        block: nn.Module,
        chain: Chain,
        path: str,
        stream: str,
        output: int,
        segments: int,
        granularity: str,
    ) -> None:
        self.block = block
        self.chain = chain
        self.path = path
        self.stream = stream
        self.output = output
        self.segments = segments
        self.granularity = granularity
        # A forward that was put on the instance before; None for the class's own.
        self.replaced: Callable[..., Any] | None = block.__dict__.get("forward")
        self._plans: dict[Any, Plan] = {}
        self._inlined: tuple[str, ...] = ("",)
        self._position = self._find_position()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}  # made again from the live block when needed

    @property
    def __signature__(self) -> python_inspect.Signature:
        return python_inspect.signature(self.original)

    @property
    def original(self) -> Callable[..., Any]:
        """The block's forward as it was before, bound."""
        if self.replaced is not None:
            return self.replaced
        bound: Callable[..., Any] = type(self.block).forward.__get__(self.block)
        return bound

    # torch.compile of a whole network runs its chains as they are: the tape is not for it to trace.
    @torch._disable_dynamo
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block's segments on its chain."""
        refuse_sharded_parts(self.block, self.path)
        x = args[self._position] if len(args) > self._position else kwargs[self.stream]
        if not isinstance(x, torch.Tensor):
            raise UnsupportedModelError(
                f"block {self.path!r} was called with a {type(x).__name__} in place of a tensor.",
                hint="torch.fx cannot follow a rewired network. Forward hooks give features from the middle.",
            )
        run = self.chain.enter(self.path, x)
        try:
            leaves, spec = pytree.tree_flatten((args, kwargs))
            plan = self._plan(args, kwargs, leaves, spec, x)
            run.sides = []
            for segment in plan.segments:
                call = segment.bind(self.block, leaves, self.chain.compile_options)
                if self.chain.chunks > 1 and run.how != "plain":
                    segment.cut(call, run.x, run.alpha, self.chain.chunks)
                self.chain.advance(run, call)
            result = self.chain.leave(run)
        except BaseException:
            self.chain.abandon()
            raise
        if plan.finish is None:
            return result
        return plan.finish(self.block, result, 0.0, *(leaves[i] for i in plan.finish_extras), *run.sides)

    def _find_position(self) -> int:
        if self.stream.isdigit():
            return int(self.stream)
        names = list(python_inspect.signature(self.original).parameters)
        return names.index(self.stream) if self.stream in names else 1 << 30

    # -- plans -------------------------------------------------------------------------------

    def _plan(self, args: Any, kwargs: Any, leaves: list[Any], spec: Any, x: torch.Tensor) -> Plan:
        call = (spec, tuple(map(_kind, leaves)), _same(leaves), _modes(x))
        key = (call, self._state())
        plan = self._plans.get(key)
        if plan is not None and plan.specialised:
            plan = self._plans.get((*key, _shapes(leaves)))
        if plan is None:
            plan = self._make_plan(args, kwargs, leaves, x)
            self._inlined = tuple(sorted({*self._inlined, *plan.inlined}))
            key = (call, self._state())
            self._plans[key] = plan
            if plan.specialised:
                self._plans[(*key, _shapes(leaves))] = plan
        return plan

    def _state(self) -> tuple[Any, ...]:
        """What the block's code may decide by: simple attributes of every module whose code is inlined."""
        modules = [self.block.get_submodule(path) for path in self._inlined]
        return tuple(
            (
                id(m),
                type(m),
                has_hooks(m),
                *((name, v) for name, v in m.__dict__.items() if type(v) in _SIMPLE),
            )
            for m in modules
        )

    @outside_inference_mode
    def _make_plan(self, args: Any, kwargs: Any, leaves: list[Any], x: torch.Tensor) -> Plan:
        if torch.compiler.is_exporting():
            with outside_export():
                return self._make_plan(*stand_ins((args, kwargs, leaves, x)))
        if torch.jit.is_tracing():
            raise UnsupportedModelError(
                f"block {self.path!r} has not run in this mode before the network is traced.",
                hint="Run the network once before, in evaluation mode and inside torch.no_grad().",
            )
        stream = next(i for i, leaf in enumerate(leaves) if leaf is x)
        try:
            if torch.is_grad_enabled():  # without gradients a segment runs once, and may fill a cache
                check_arguments(args, kwargs)
            try:
                graphs, specialised, inlined = self._cut_on_fakes(args, kwargs, leaves, stream)
            except TraceError:  # sizes may depend on data inside a submodule, as in a mixture of experts
                graphs, specialised, inlined = self._cut_on_values(args, kwargs, x, stream)
        except (TraceError, SegmentError) as error:
            raise UnsupportedModelError(
                f"block {self.path!r} cannot run reversibly with these arguments.",
                where=str(error),
                hint="Call it as it was called when the network was rewired, or exclude it in the recipe.",
            ) from error
        if len(graphs.segments) != self.segments:
            raise ChainBrokenError(
                f"block {self.path!r} has {len(graphs.segments)} residual modules in this call, "
                f"and had {self.segments} when the network was rewired.",
                hint="Rewire with example inputs that are like the ones in use, or exclude the block.",
            )
        return self._compiled(graphs, specialised, inlined)

    def _cut_on_fakes(self, args: Any, kwargs: Any, leaves: list[Any], stream: int) -> Cut:
        """Without memory or computation."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(untouched(self.block))
            stack.enter_context(_no_weight_caches())
            fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            fakes = {id(t): fake.from_tensor(t) for t in leaves if isinstance(t, torch.Tensor)}
            args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: fakes[id(t)], (args, kwargs))
            return self._cut(args, kwargs, stream)

    def _cut_on_values(self, args: Any, kwargs: Any, x: torch.Tensor, stream: int) -> Cut:
        """By computing the block's submodules once, for the values themselves."""
        devices = [x.device.index or 0] if x.is_cuda else []
        with untouched(self.block), _no_weight_caches(), torch.random.fork_rng(devices=devices):
            return self._cut(args, kwargs, stream)

    def _cut(self, args: Any, kwargs: Any, stream: int) -> Cut:
        """Trace and cut; first with what was inlined before, which mostly is what is needed again."""
        if self._plans:
            graphs, trace = self._cut_inlining(frozenset(self._inlined) - {""}, args, kwargs, stream)
            if len(graphs.segments) == self.segments:
                return graphs, trace.specialised, trace.inlined
        inline = inline_set(self.block, self.original, args, kwargs, stream, self.output)
        graphs, trace = self._cut_inlining(inline, args, kwargs, stream)
        return graphs, trace.specialised, trace.inlined

    def _cut_inlining(
        self, inline: frozenset[str], args: Any, kwargs: Any, stream: int
    ) -> tuple[BlockGraphs, Trace]:
        trace = trace_block(self.block, self.original, args, kwargs, inline=inline)
        return segment_block(trace, stream, self.output, self.granularity), trace

    def _compiled(self, graphs: BlockGraphs, specialised: bool, inlined: frozenset[str]) -> Plan:
        segments = []
        for i, g in enumerate(graphs.segments):
            name = f"{self.path} (segment {i})"
            made = PlannedSegment(name, g.compile(name), g.extras, g.branch, g.attributes, len(g.sides))
            segments.append(made)
        finish = compile_graph(graphs.finish) if graphs.finish is not None else None
        return Plan(segments, finish, graphs.finish_extras, specialised, inlined)


@contextlib.contextmanager
def _no_weight_caches() -> Iterator[None]:
    """Keep fake weights out of the caches that autocast and parametrizations use for the real ones."""
    enabled, depth = torch.is_autocast_cache_enabled(), parametrize._cache_enabled
    torch.set_autocast_cache_enabled(False)
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        parametrize._cache_enabled = depth


def _shapes(leaves: list[Any]) -> tuple[tuple[int, ...], ...]:
    """The sizes of all tensors. One that torch.export has left open is settled by this."""
    return tuple(tuple(map(int, leaf.shape)) for leaf in leaves if isinstance(leaf, torch.Tensor))


def _kind(leaf: Any) -> Any:
    """What a graph depends on in an argument: rank and type of a tensor, a constant's value."""
    if isinstance(leaf, torch.Tensor):
        return leaf.ndim, leaf.dtype, leaf.device.type
    return (type(leaf), leaf) if isinstance(leaf, CONSTANT_TYPES) else type(leaf)


def _same(leaves: list[Any]) -> tuple[tuple[int, int], ...]:
    """Which arguments are one and the same tensor: (place, place of the first), as in ``layer(x, x, x)``."""
    first: dict[int, int] = {}
    places = [
        (i, first.setdefault(id(x), i)) for i, x in enumerate(leaves) if not isinstance(x, CONSTANT_TYPES)
    ]
    return tuple((i, j) for i, j in places if i != j)


def _modes(x: torch.Tensor) -> tuple[Any, ...]:
    """The ambient modes that Python code may decide by."""
    kind = x.device.type
    enabled = torch.is_autocast_enabled(kind)
    return torch.is_grad_enabled(), enabled, torch.get_autocast_dtype(kind) if enabled else None
