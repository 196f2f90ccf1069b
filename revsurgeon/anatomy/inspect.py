"""Find the chains of a network: probe it, trace what could be a block, and link blocks to chains."""

from __future__ import annotations

import inspect as python_inspect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.flow import SegmentError, ends_in_join
from revsurgeon.anatomy.left_alone import left_alone, unique
from revsurgeon.anatomy.links import Found, count_segments, link, names, one_run_each
from revsurgeon.anatomy.probe import Call, ExampleInputs, Stamp, has_hooks, probe, stamp, untouched
from revsurgeon.anatomy.proxies import CONSTANT_TYPES, TraceError
from revsurgeon.anatomy.report import Anatomy, Block, Chain, Reason, Segment, Skipped
from revsurgeon.anatomy.segment import BlockGraphs, residual_scopes, segment_block
from revsurgeon.anatomy.trace import Trace, trace_block
from revsurgeon.inference_mode import outside_inference_mode


@dataclass
class _Cover:
    """What was found inside one call.

    Attributes:
        found: blocks, in the order of their calls.
        way: (stamp in, tensor out, stamp out) when the blocks lead from the call's input to its output.
    """

    found: list[Found] = field(default_factory=list)
    way: tuple[Stamp, torch.Tensor, Stamp] | None = None


@outside_inference_mode
def inspect(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    granularity: str = "segment",
    select: Callable[[str], bool] = lambda path: True,
) -> Anatomy:
    """Find what can be rewired, and give a reason for everything else.

    Nothing in the network changes. It runs once, on fake tensors where that works, so that neither
    memory nor time for a real forward is needed; a network on the meta device needs no weights.

    Args:
        model: any network.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        granularity: "segment" for every residual module on its own, "block" for whole blocks.
        select: whether the block at a dotted path may be rewired.

    Returns:
        The anatomy.

    Raises:
        UnsupportedModelError: the network does not run on the example inputs.
    """
    root, mode = probe(model, example_inputs)
    with mode, untouched(model), torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(model)):
        search = _Search(granularity)
        found = search.cover(root).found
    allowed = [f for f in found if select(f.block.path)]
    skipped = [
        Skipped(f.block.path, Reason.EXCLUDED, "the recipe's patterns leave it out")
        for f in found
        if f not in allowed
    ]
    runs, conflicts = one_run_each(link(allowed))
    skipped += [
        Skipped(path, Reason.CALLED_TWICE, "it runs at places of different chains") for path in conflicts
    ]
    chain_names = names([[f.block.path for f in run] for run in runs])
    chains = tuple(
        Chain(name, tuple(f.block for f in run), stamp(run[-1].output) != run[-1].output_stamp)
        for name, run in zip(chain_names, runs, strict=True)
    )
    skipped += left_alone(model, root, {f.call for run in runs for f in run}, search.refusals)
    total = {id(p): p.numel() for p in model.parameters()}
    inside = {
        id(p): p.numel()
        for chain in chains
        for b in chain.blocks
        for p in model.get_submodule(b.path).parameters()
    }
    return Anatomy(chains, tuple(unique(skipped)), sum(total.values()), sum(inside.values()))


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})


class _Search:
    """Decides, call by call from the inside out, at which level the blocks are."""

    def __init__(self, granularity: str) -> None:
        self.granularity = granularity
        self.refusals: dict[Call, SegmentError] = {}
        self.inline_sets: dict[Any, frozenset[str]] = {}
        self.hopeless: dict[Any, SegmentError] = {}

    def cover(self, call: Call) -> _Cover:
        """Find the blocks inside a call."""
        covers = [self.cover(child) for child in call.children]
        found = [f for cover in covers for f in cover.found]
        way = self._way_through(call, covers)
        if way is not None:
            return _Cover(found, way)
        longest = max(link(found), key=count_segments, default=[])
        if len(longest) > 1:
            return _Cover(found)
        # One block on its own may be a part of a larger one that repeats.
        whole = self._as_block(call) if call.parent is not None else None
        if whole is not None:
            gain = len(whole.block.segments) - count_segments(longest)
            if gain > 0 or (gain == 0 and self._has_neighbour(whole)):
                return _Cover([whole], (whole.inputs, whole.output, whole.output_stamp))
        return _Cover(found)

    @staticmethod
    def _way_through(call: Call, covers: list[_Cover]) -> tuple[Stamp, torch.Tensor, Stamp] | None:
        """Follow the stream from the call's input through its children to its output, if it leads there."""
        for start, tensor in call.inputs.items():
            if start in call.outputs and not call.children:
                return start, tensor, start  # a module that passes its input on
            place = start
            for cover in covers:
                if cover.way is not None and cover.way[0] == place:
                    tensor, place = cover.way[1], cover.way[2]
            if place != start and place in call.outputs:
                return start, tensor, place
        return None

    @staticmethod
    def _has_neighbour(found: Found) -> bool:
        """Whether the call before or after it, under the same parent, hands the stream on."""
        siblings = found.call.parent.children if found.call.parent else []
        others = [s for s in siblings if s is not found.call]
        return any(found.inputs in s.outputs or found.output_stamp in s.inputs for s in others)

    def _as_block(self, call: Call) -> Found | None:
        """Trace and cut a call; None, with the reason kept, when it is no block."""
        outputs = pytree.tree_leaves(call.output)
        pairs = [
            (start, tensor, number)
            for number, out in enumerate(outputs)
            if isinstance(out, torch.Tensor) and out.is_floating_point()
            for start, tensor in call.inputs.items()
            if tensor.shape == out.shape and tensor.dtype == out.dtype and tensor is not out
        ]
        if not _may_be_block(call.module):
            return None
        if not pairs:
            self.refusals[call] = _no_pair(call)
            return None
        for start, tensor, number in pairs:
            try:
                block = self._cut(call, tensor, number)
            except SegmentError as refusal:
                self.refusals.setdefault(call, refusal)
            else:
                out = outputs[number]
                out_stamp = next(s for s, t in call.outputs.items() if t is out)
                return Found(call, block, start, out, out_stamp)
        return None

    def _cut(self, call: Call, stream: torch.Tensor, output: int) -> Block:
        """Both modes of a block, cut; they must agree."""
        signature = (_structure(call.module), _shapes((call.args, call.kwargs)), output)
        if signature in self.hopeless:
            raise self.hopeless[signature]
        name = stream_name(call.module, call.args, call.kwargs, stream)
        index = next(
            i for i, leaf in enumerate(pytree.tree_leaves((call.args, call.kwargs))) if leaf is stream
        )
        try:
            graphs = []
            for training in (False, True):
                with _mode(call.module, training):
                    graphs.append(self._graphs(call, index, output, signature))
        except SegmentError as refusal:
            self.hopeless[signature] = refusal
            raise
        inlined = self.inline_sets[signature, True] | self.inline_sets[signature, False]
        members = Counter(path.rpartition(".")[0] for path in inlined if path.rpartition(".")[2].isdigit())
        if any(count > 1 for count in members.values()):
            # Their own hooks, and code that asks for their outputs, would find them gone.
            raise SegmentError(
                Reason.NO_RESIDUAL, "its additions are in blocks that follow each other inside it"
            )
        evaluated, trained = graphs
        if [(s.skip, len(s.sides)) for s in evaluated.segments] != [
            (s.skip, len(s.sides)) for s in trained.segments
        ]:
            raise SegmentError(Reason.MODES_DIFFER, "it is cut differently in training and evaluation mode")
        segments = []
        for number, graph in enumerate(evaluated.segments):
            used = parameters_of(call.module, graph.branch, graph.attributes)
            size = sum(p.numel() for p in used)
            shape = tuple(stream.shape)
            segments.append(Segment(call.path, number, graph.branch, graph.skip, size, shape, graph.code))
        return Block(call.path, name, output, tuple(segments))

    def _graphs(self, call: Call, stream: int, output: int, signature: Any) -> BlockGraphs:
        """Trace with as little inlined as the residual additions need, and cut."""
        check_arguments(call.args, call.kwargs)
        forward = call.module.forward
        key = (signature, call.module.training)
        if key not in self.inline_sets:
            self.inline_sets[key] = _needed_inlining(_traced(call, forward, None), stream, output)
        return segment_block(_traced(call, forward, self.inline_sets[key]), stream, output, self.granularity)


def _no_pair(call: Call) -> SegmentError:
    """Why a call is no block of which no output is another tensor than an input, of its shape."""
    entered = {number for number, _ in call.inputs}
    if any(number in entered and (number, version) not in call.inputs for number, version in call.outputs):
        return SegmentError(Reason.MUTATES, "it writes over its input and returns it")
    try:
        joined = ends_in_join(trace_block(call.module, call.module.forward, call.args, call.kwargs).graph)
    except TraceError:
        joined = False
    if joined:
        return SegmentError(Reason.CONCATENATION, "its branches are joined by concatenation, not by addition")
    detail = " -> ".join(str([tuple(t.shape) for t in side.values()]) for side in (call.inputs, call.outputs))
    return SegmentError(Reason.SHAPE_CHANGES, detail)


def _traced(call: Call, forward: Any, inline: frozenset[str] | None) -> Trace:
    try:
        with torch.enable_grad():  # as in training, so that a region without gradients shows
            return trace_block(call.module, forward, call.args, call.kwargs, inline=inline)
    except TraceError as error:
        raise SegmentError(Reason.UNTRACEABLE, str(error)) from error


def _needed_inlining(trace: Trace, stream: int, output: int) -> frozenset[str]:
    """The submodules that hold residual additions of the block, and the modules around them."""
    paths: set[str] = set()
    for scope in residual_scopes(trace, stream, output):
        parts = scope.split(".") if scope else []
        paths |= {".".join(parts[: n + 1]) for n in range(len(parts))}
    return frozenset(paths)


def inline_set(
    block: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any], stream: int, output: int
) -> frozenset[str]:
    """Which submodules of a block must be inlined to reach its residual additions.

    Raises:
        TraceError: the block's code cannot be followed.
    """
    return _needed_inlining(trace_block(block, forward, args, kwargs), stream, output)


def check_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Every argument must be a tensor or a constant; an object with a life of its own may change in between.

    Raises:
        SegmentError: with `Reason.OPAQUE_ARGUMENT`.
    """
    for leaf in pytree.tree_leaves((args, kwargs)):
        if not isinstance(leaf, (torch.Tensor, *CONSTANT_TYPES)):
            raise SegmentError(Reason.OPAQUE_ARGUMENT, f"an argument is a {type(leaf).__name__}")


def stream_name(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], stream: torch.Tensor
) -> str:
    """The forward's parameter that takes the stream; its position where it has no name.

    Raises:
        SegmentError: the stream is inside a structure.
    """
    for name, value in kwargs.items():
        if value is stream:
            return name
    parameters = list(python_inspect.signature(module.forward).parameters.values())
    for position, value in enumerate(args):
        if value is stream:
            named = (
                position < len(parameters)
                and parameters[position].kind is not parameters[position].VAR_POSITIONAL
            )
            return parameters[position].name if named else str(position)
    raise SegmentError(Reason.OPAQUE_ARGUMENT, "the stream comes inside a structure")


def parameters_of(block: nn.Module, modules: Iterable[str], attributes: Iterable[str]) -> list[nn.Parameter]:
    """The parameters under the given submodules and attributes, each once."""
    unique: dict[int, nn.Parameter] = {}
    for path in modules:
        for parameter in block.get_submodule(path).parameters():
            unique[id(parameter)] = parameter
    for path in attributes:
        owner, _, name = path.rpartition(".")
        tensor = getattr(block.get_submodule(owner), name)
        if isinstance(tensor, nn.Parameter):
            unique[id(tensor)] = tensor
    return list(unique.values())


def _may_be_block(module: nn.Module) -> bool:
    """Plain layers of torch.nn cannot hold a residual module; everything with code of its own may."""
    plain = type(module).__module__.startswith("torch.nn.modules") and not list(module.children())
    return not plain and not isinstance(module, torch.jit.ScriptModule)


def _structure(module: nn.Module) -> tuple[Any, ...]:
    """What two modules of the same make have in common: names, types and hooks of all submodules."""
    return tuple((path, type(m), has_hooks(m)) for path, m in module.named_modules())


def _shapes(tree: Any) -> tuple[Any, ...]:
    return tuple(
        tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else repr(leaf)
        for leaf in pytree.tree_leaves(tree)
    )


class _mode:  # noqa: N801 - reads as a statement
    """Put a module into training or evaluation mode for a while."""

    def __init__(self, module: nn.Module, training: bool) -> None:
        self.module, self.training = module, training
        self.flags = [(m, m.training) for m in module.modules()]

    def __enter__(self) -> None:
        self.module.train(self.training)

    def __exit__(self, *exc: object) -> None:
        for module, flag in self.flags:
            module.training = flag
