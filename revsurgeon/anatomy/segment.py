"""Cut a block's graph into residual modules and turn each into a function over the live block.

A *cut point* is a value through which every path from the block's input to its output goes. Between
two neighbouring cut points lies either one residual module, ``F(x) + x``, or plain operations, which
belong to the ``post`` of the residual module before them: ``G(x; alpha) = post(F(x) + alpha * x)``
(Zhao et al., Dr2Net, CVPR 2024, section 3).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.flow import Flow, Interval, SegmentError, is_add, is_product, works_in_place
from revsurgeon.anatomy.functions import compile_graph, readable_code, residual_add, scale_skip
from revsurgeon.anatomy.report import Reason
from revsurgeon.anatomy.sides import place_side_outputs
from revsurgeon.anatomy.trace import Trace


@dataclass
class SegmentGraph:
    """One residual module as a graph over the live block.

    Attributes:
        graph: placeholders are ``x``, ``alpha`` and one for each of `extras`; returns G(x; alpha).
        extras: which of the block's flattened arguments it reads besides the stream.
        branch: paths of the submodules that it calls, in order.
        skip: "identity" (x), "scaled" (c * x), or "none" (alpha does not apply).
        attributes: paths of the parameters and buffers that it reads itself.
        sides: names of the values that it returns behind G, which the block gives out beside the stream.
    """

    graph: fx.Graph
    extras: tuple[int, ...]
    branch: tuple[str, ...]
    skip: str
    attributes: tuple[str, ...]
    sides: tuple[str, ...] = ()

    def compile(self, name: str) -> Callable[..., Any]:
        """The function ``(block, x, alpha, *extras) -> G``; it looks submodules up when it runs."""
        return compile_graph(self.graph, name)

    @property
    def code(self) -> str:
        """The function's Python source, to read."""
        return readable_code(self.graph)


@dataclass
class BlockGraphs:
    """A block, cut: its segments in order, and how its output is put together from the last value.

    Attributes:
        segments: at least one.
        finish: ``(block, x, 0.0, *extras, *sides) -> output``; None when the output is the value itself.
        finish_extras: which of the block's flattened arguments `finish` reads.
    """

    segments: list[SegmentGraph]
    finish: fx.Graph | None
    finish_extras: tuple[int, ...]


def segment_block(trace: Trace, stream: int, output: int, granularity: str = "segment") -> BlockGraphs:
    """Cut a traced block.

    Args:
        trace: of the block.
        stream: index of the stream among the flattened arguments.
        output: index of the stream among the flattened outputs.
        granularity: "segment" for every residual module on its own, "block" for the block as one.

    Raises:
        SegmentError: with the reason.
    """
    source = trace.leaves[stream]
    structure, spec = pytree.tree_flatten(
        trace.graph.output_node().args[0], is_leaf=lambda n: isinstance(n, fx.Node)
    )
    sink = structure[output]
    if not isinstance(sink, fx.Node) or sink is source:
        raise SegmentError(Reason.NO_RESIDUAL, "the output does not depend on the input")
    flow = Flow(trace.graph, source, sink)
    others = [n for n in structure if isinstance(n, fx.Node) and n is not sink]
    for node in trace.graph.nodes:
        for changed in node.meta.get("mutates", ()):
            if changed.op == "placeholder" and changed is not source:
                raise SegmentError(Reason.MUTATES, f"it changes its argument {changed.name!r} in place")
    for path, node in trace.kept:
        # Dropping it is right for a cache, which is made again; a count or a loss term would be lost.
        if node is None:
            raise SegmentError(Reason.SIDE_EFFECT, f"its code counts or notes something in {path!r}")
        if node in flow.live or any(n.op == "get_attr" and n.target == path for n in flow.ancestors(node)):
            raise SegmentError(Reason.SIDE_EFFECT, f"its own code keeps {path!r} for later")
    groups = flow.groups(granularity)
    slices = [flow.slice(group[-1].end, group[0].start) for group in groups]
    nothing = {n for n in others if n.meta["value"] is None}  # attention weights that were not asked for
    sides = place_side_outputs(flow, others, groups, slices)
    given = [n for nodes in sides for n in nodes]
    finish_slice = flow.slice_of([n for n in others if n not in nothing], stop=sink, given=given)
    _check_left_over(trace.graph, [*slices, finish_slice], [g[0].start for g in groups])
    leaf_index = {node: index for index, node in trace.leaves.items()}
    rows = zip(groups, slices, sides, strict=True)
    segments = [_build(group, nodes, leaf_index, flow, out) for group, nodes, out in rows]
    if spec.is_leaf():
        return BlockGraphs(segments, None, ())
    copy = _copy(finish_slice, sink, leaf_index, flow, rewrite={}, given=given)
    finish = copy.graph
    mapping = {node.meta["of"]: node for node in finish.nodes if "of" in node.meta}
    mapping.update(dict.fromkeys(nothing))
    finish.output(fx.node.map_arg(trace.graph.output_node().args[0], lambda n: mapping[n]))
    return BlockGraphs(segments, finish, copy.extras)


def residual_scopes(trace: Trace, stream: int, output: int) -> set[str]:
    """Paths of the inlined submodules whose own code makes the block's residual additions, or scales a skip.

    Raises:
        SegmentError: there are none.
    """
    structure = pytree.tree_leaves(
        trace.graph.output_node().args[0], is_leaf=lambda n: isinstance(n, fx.Node)
    )
    groups = Flow(trace.graph, trace.leaves[stream], structure[output]).groups("segment")
    joined = [n for group in groups for i in group if i.add is not None for n in (i.add, i.skip)]
    return {n.meta["scope"] for n in joined if n is not None}


def _check_left_over(graph: fx.Graph, slices: list[list[fx.Node]], starts: list[fx.Node]) -> None:
    """Nothing that has an effect may be lost, run twice, or move past another random draw."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    count: dict[fx.Node, int] = {}
    for nodes in slices:
        for node in nodes:
            count[node] = count.get(node, 0) + 1
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        has_effect = node.meta["random"] or node.meta["mutates"] or node.op == "call_module"
        if has_effect and count.get(node, 0) != 1:
            what = "is computed but not used" if node not in count else "is used by several residual modules"
            raise SegmentError(Reason.SIDE_EFFECT, f"{node.name!r} {what}")
    for nodes, start in zip(slices, starts, strict=False):
        for node in nodes:
            if node.op != "get_attr" and node.meta.get("random") and order[node] < order[start]:
                raise SegmentError(Reason.SIDE_EFFECT, f"{node.name!r} draws random numbers ahead of its use")


def _build(
    group: list[Interval],
    nodes: list[fx.Node],
    leaf_index: dict[fx.Node, int],
    flow: Flow,
    sides: list[fx.Node],
) -> SegmentGraph:
    """Copy a segment's nodes into a graph of its own, with alpha on its skip."""
    residual = [i for i in group if i.add is not None]
    rewrite = {i.add: i for i in residual if i.add is not None}
    start, end = group[0].start, group[-1].end
    # A pre-norm block taken whole: its skip is the sum of all its skips, so alpha scales the block's input
    # once and the branches still see what they saw. With operations in between, every skip is scaled.
    whole = len(residual) == len(group) > 1 and all(i.add is i.end and i.skip is not None for i in group)
    whole = whole and not any(is_product(i.skip) for i in group if i.skip is not None)
    copy = _copy(nodes, start, leaf_index, flow, rewrite={} if whole else rewrite)
    graph, copies = copy.graph, copy.copies
    result = copies[end]
    if whole:
        result = copy.x
        for number, interval in enumerate(group):
            result = _twin_add(copy, interval, result, scale=number == 0)
    graph.output((result, *(copies[n] for n in sides)) if sides else result)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op != "call_function" or n.target not in (getattr,))
    graph.lint()
    branch = tuple(str(n.target) for n in nodes if n.op == "call_module")
    attributes = tuple(dict.fromkeys(str(n.target) for n in nodes if n.op == "get_attr"))
    kinds = {"scaled" if i.skip is not None and is_product(i.skip) else "identity" for i in residual}
    kind = "scaled" if "scaled" in kinds else "identity"
    return SegmentGraph(graph, copy.extras, branch, kind, attributes, tuple(n.name for n in sides))


@dataclass
class _Copy:
    """Nodes of a block's graph in a graph of their own, which has no output yet.

    Attributes:
        graph: with placeholders x, alpha and the arguments that it reads.
        extras: which of the block's flattened arguments these are.
        copies: from the block's nodes to their copies.
        x, alpha: the placeholders.
    """

    graph: fx.Graph
    extras: tuple[int, ...]
    copies: dict[fx.Node, fx.Node]
    x: fx.Node
    alpha: fx.Node


def _twin_add(copy: _Copy, interval: Interval, twin: fx.Node, scale: bool) -> fx.Node:
    """The same addition once more, onto the scaled skip."""
    assert interval.add is not None
    left, right = interval.add.args
    left_is_skip = left is interval.skip
    branch = fx.node.map_arg(right if left_is_skip else left, copy.copies.__getitem__)
    operands = (twin, branch) if left_is_skip else (branch, twin)
    if not scale:
        return copy.graph.call_function(operator.add, operands)
    arguments = (*operands, copy.alpha, 0 if left_is_skip else 1, False)
    return copy.graph.create_node("call_function", residual_add, arguments, {}, "twin")


def _copy(
    nodes: list[fx.Node],
    start: fx.Node,
    leaf_index: dict[fx.Node, int],
    flow: Flow,
    rewrite: dict[fx.Node, Interval],
    given: Sequence[fx.Node] = (),
) -> _Copy:
    """A new graph of `nodes` with placeholders x, alpha, the arguments that they read, and what is given."""
    graph = fx.Graph()
    x = stream = graph.placeholder("x")
    alpha = graph.placeholder("alpha")
    arguments = [n for n in nodes if n.op == "placeholder"]
    copies: dict[fx.Node, fx.Node] = {n: graph.placeholder(n.name) for n in (*arguments, *given)}
    if any(start in n.meta.get("mutates", ()) and n not in rewrite for n in nodes):
        x = graph.call_method("clone", (x,))
    copies[start] = x

    def lookup(node: fx.Node) -> fx.Node:
        return copies.get(node, x)  # x: a value whose sizes the stream has too

    for node in nodes:
        if node in copies:
            continue
        interval = rewrite.get(node)
        if interval is not None:
            new = _rewritten_add(graph, node, interval, lookup, alpha)
        elif is_add(node) and works_in_place(node) and node.args[0] is start:
            new = graph.call_function(operator.add, tuple(lookup(a) for a in node.args))  # type: ignore[arg-type]
        else:
            new = graph.node_copy(node, lookup)
            new.meta = {}
        new.meta["of"] = node
        copies[node] = new
    x.meta["of"] = start
    for argument in (*arguments, *given):
        copies[argument].meta["of"] = argument
    return _Copy(graph, tuple(leaf_index[n] for n in arguments), copies, stream, alpha)


def _rewritten_add(
    graph: fx.Graph, node: fx.Node, interval: Interval, lookup: Callable[[fx.Node], fx.Node], alpha: fx.Node
) -> fx.Node:
    args = fx.node.map_arg(node.args, lookup)
    if node.target is torch.addcmul:
        scaled = graph.create_node("call_function", scale_skip, (args[0], alpha), {}, "scaled")
        return graph.call_function(torch.addcmul, (scaled, *args[1:]))
    skip = 0 if node.args[0] is interval.skip else 1
    # x += F(x) would change the stream itself; F(x) += x changes only what the branch made.
    in_place = works_in_place(node) and skip == 1
    return graph.create_node("call_function", residual_add, (*args, alpha, skip, in_place), {}, "joined")
