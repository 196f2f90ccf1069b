"""Cut a block's graph into residual modules and turn each into a function over the live block.

A *cut point* is a value through which every path from the block's input to its output goes. Between
two neighbouring cut points lies either one residual module, ``F(x) + x``, or plain operations, which
belong to the ``post`` of the residual module before them: ``G(x; alpha) = post(F(x) + alpha * x)``
(Zhao et al., Dr2Net, CVPR 2024, section 3).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.report import Reason
from revsurgeon.anatomy.trace import Trace

_ADD_FUNCTIONS = {operator.add: False, operator.iadd: True, torch.add: False, torch.Tensor.add: False}
_ADD_METHODS = {"add": False, "add_": True, "__add__": False, "__iadd__": True}
_MUL = {operator.mul, operator.imul, torch.mul}
_JOINS = {torch.cat, torch.concat, torch.concatenate, torch.stack}


class CannotSegment(Exception):
    """The graph has no residual module that can be rewired.

    Args:
        reason: the reason code.
        detail: what was seen, in words.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass
class SegmentGraph:
    """One residual module as a graph over the live block.

    Attributes:
        graph: placeholders are ``x``, ``alpha`` and one for each of `extras`; returns G(x; alpha).
        extras: which of the block's flattened arguments it reads besides the stream.
        branch: paths of the submodules that it calls, in order.
        skip: "identity" (x), "scaled" (c * x), or "none" (alpha does not apply).
        attributes: paths of the parameters and buffers that it reads itself.
    """

    graph: fx.Graph
    extras: tuple[int, ...]
    branch: tuple[str, ...]
    skip: str
    attributes: tuple[str, ...]

    def compile(self) -> Callable[..., Any]:
        """The function ``(block, x, alpha, *extras) -> G``; it looks submodules up when it runs."""
        return compile_graph(self.graph)

    @property
    def code(self) -> str:
        """The function's Python source, to read."""
        return readable_code(self.graph)


@dataclass
class BlockGraphs:
    """A block, cut: its segments in order, and how its output is put together from the last value.

    Attributes:
        segments: at least one.
        finish: ``(block, x, 0.0, *extras) -> output``; None when the output is the value itself.
        finish_extras: which of the block's flattened arguments `finish` reads.
    """

    segments: list[SegmentGraph]
    finish: fx.Graph | None
    finish_extras: tuple[int, ...]


@dataclass
class _Interval:
    """What lies between two neighbouring cut points."""

    start: fx.Node
    end: fx.Node
    add: fx.Node | None  # the addition that joins the skip, when this is a residual module
    skip: fx.Node | None  # its operand on the skip side


def segment_block(trace: Trace, stream: int, output: int, granularity: str = "segment") -> BlockGraphs:
    """Cut a traced block.

    Args:
        trace: of the block.
        stream: index of the stream among the flattened arguments.
        output: index of the stream among the flattened outputs.
        granularity: "segment" for every residual module on its own, "block" for the block as one.

    Raises:
        CannotSegment: with the reason.
    """
    source = trace.leaves[stream]
    structure, spec = pytree.tree_flatten(trace.graph.output_node().args[0], is_leaf=lambda n: isinstance(n, fx.Node))
    sink = structure[output]
    if not isinstance(sink, fx.Node) or sink is source:
        raise CannotSegment(Reason.NO_RESIDUAL, "the output does not depend on the input")
    flow = _Flow(trace.graph, source, sink)
    others = [n for n in structure if isinstance(n, fx.Node) and n is not sink]
    if any(n in flow.live for n in others):
        raise CannotSegment(Reason.SIDE_OUTPUT, "it returns a second value that is computed from the stream")
    for node in trace.graph.nodes:
        for changed in node.meta.get("mutates", ()):
            if changed.op == "placeholder" and changed is not source:
                raise CannotSegment(Reason.MUTATES, f"it changes its argument {changed.name!r} in place")
    groups = flow.groups(granularity)
    slices = [flow.slice(group[-1].end, group[0].start) for group in groups]
    nothing = {n for n in others if n.meta["value"] is None}  # attention weights that were not asked for
    finish_slice = flow.slice_of([n for n in others if n not in nothing], stop=sink)
    _check_left_over(trace.graph, [*slices, finish_slice], [g[0].start for g in groups])
    leaf_index = {node: index for index, node in trace.leaves.items()}
    segments = [_build(group, nodes, leaf_index, flow) for group, nodes in zip(groups, slices, strict=True)]
    if spec.is_leaf():
        return BlockGraphs(segments, None, ())
    finish, extras, _ = _copy(finish_slice, sink, leaf_index, flow, rewrite={})
    mapping = {node.meta["of"]: node for node in finish.nodes if "of" in node.meta}
    mapping.update(dict.fromkeys(nothing))
    finish.output(fx.node.map_arg(trace.graph.output_node().args[0], lambda n: mapping[n]))
    return BlockGraphs(segments, finish, extras)


def residual_scopes(trace: Trace, stream: int, output: int) -> set[str]:
    """Paths of the inlined submodules whose own code makes the block's residual additions.

    Raises:
        CannotSegment: there are none.
    """
    structure = pytree.tree_leaves(trace.graph.output_node().args[0], is_leaf=lambda n: isinstance(n, fx.Node))
    groups = _Flow(trace.graph, trace.leaves[stream], structure[output]).groups("segment")
    return {i.add.meta["scope"] for group in groups for i in group if i.add is not None}


class _Flow:
    """Which values of a graph carry the stream from its source to its sink."""

    def __init__(self, graph: fx.Graph, source: fx.Node, sink: fx.Node) -> None:
        self.source, self.sink = source, sink
        self.order = {node: position for position, node in enumerate(graph.nodes)}
        self._inputs = _inputs_with_changes(graph)
        # live: holds tensor data computed from the source. Sizes and types are not data.
        self.live: set[fx.Node] = {source}
        for node in graph.nodes:
            if node.op != "output" and holds_tensor(node) and any(i in self.live for i in self.inputs(node)):
                self.live.add(node)
        # The live values whose sizes a value that is not live depends on.
        self._size_roots: dict[fx.Node, set[fx.Node]] = {}
        for node in graph.nodes:
            roots = [{i} if i in self.live else self._size_roots[i] for i in self.inputs(node)]
            self._size_roots[node] = set().union(*roots)
        if sink not in self.live:
            raise CannotSegment(Reason.NO_RESIDUAL, "the output does not depend on the input")
        shape = source.meta["value"].shape
        if not isinstance(sink.meta["value"], torch.Tensor) or sink.meta["value"].shape != shape:
            raise CannotSegment(Reason.SHAPE_CHANGES, f"{tuple(shape)} -> {tuple(sink.meta['value'].shape)}")
        # Sizes of a value that is shaped like the stream can be read off any cut point instead.
        self.like_stream = {n for n in self.live if self._is_like_stream(n)}

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose results a node reads, in-place changes of its arguments included."""
        return self._inputs[node]

    def _is_like_stream(self, node: fx.Node) -> bool:
        value = node.meta["value"]
        return (
            isinstance(value, torch.Tensor)
            and value.shape == self.source.meta["value"].shape
            and value.is_floating_point()
        )

    def parents(self, node: fx.Node) -> set[fx.Node]:
        """The live values that `node` needs, sizes of stream-shaped values aside."""
        found: set[fx.Node] = set()
        for i in self.inputs(node):
            found |= {i} if i in self.live else self._size_roots[i] - self.like_stream
        return found

    def groups(self, granularity: str) -> list[list[_Interval]]:
        """The intervals between dominators, grouped into segments.

        Raises:
            CannotSegment: there is no residual module, or the graph's values cannot be separated.
        """
        while True:
            path, dominators = self._dominators()
            pairs = zip(dominators, dominators[1:], strict=False)
            groups = _group([_classify(self, a, b) for a, b in pairs], self)
            if granularity == "block":
                groups = [[interval for group in groups for interval in group]]
            strangers = self._sizes_that_cross(path, [group[0].start for group in groups])
            if not strangers:
                return groups
            self.like_stream -= strangers

    def _dominators(self) -> tuple[list[fx.Node], list[fx.Node]]:
        """All values on the way from source to sink, and those through which every way goes."""
        needed, stack = {self.sink}, [self.sink]
        while stack:
            for parent in self.parents(stack.pop()) - needed:
                needed.add(parent)
                stack.append(parent)
        path = sorted(needed, key=self.order.__getitem__)
        last_use = dict.fromkeys(path, -1)
        for node in path:
            for parent in self.parents(node):
                last_use[parent] = max(last_use[parent], self.order[node])
        dominators, reach = [], -1
        for node in path:
            if reach <= self.order[node]:
                dominators.append(node)
            reach = max(reach, last_use[node])
        if dominators[0] is not self.source:
            raise CannotSegment(Reason.NO_RESIDUAL, "the output does not depend on the input alone")
        return path, dominators

    def may_cut(self, node: fx.Node) -> bool:
        """Whether a segment may begin at a dominator: it has the stream's shape and stays as it is."""
        return self._is_like_stream(node) and not self._changed_later(node)

    def origin(self, node: fx.Node) -> fx.Node:
        """The node whose very value `node` passes on (nn.Identity, a dropout that is off)."""
        for i in self.inputs(node):
            if node.op != "get_attr" and i.meta["value"] is node.meta["value"] and not node.meta.get("mutates"):
                return self.origin(i)
        return node

    def _changed_later(self, node: fx.Node) -> bool:
        """Whether `node` is changed in place after it was made, other than by being added to."""
        if node is self.source:
            return False  # the segment copies its input then
        return any(
            node in later.meta.get("mutates", ()) and not (is_add(later) and later.args[0] is node)
            for later in self.order
            if self.order[later] > self.order[node]
        )

    def _sizes_that_cross(self, path: Iterable[fx.Node], cuts: list[fx.Node]) -> set[fx.Node]:
        """Values that are no cut points but whose sizes are read in another segment."""
        places = [self.order[c] for c in cuts]

        def part(node: fx.Node) -> int:
            return sum(self.order[node] > place for place in places)

        crossing: set[fx.Node] = set()
        for node in path:
            for i in self.inputs(node):
                roots = set() if i in self.live else self._size_roots[i]
                crossing |= {r for r in roots - set(cuts) if part(r) != part(node)}
        return crossing & self.like_stream

    def slice(self, end: fx.Node, start: fx.Node) -> list[fx.Node]:
        """All nodes that `end` needs, back to `start`, in order."""
        return self.slice_of([end], stop=start)

    def slice_of(self, ends: Iterable[fx.Node], stop: fx.Node) -> list[fx.Node]:
        """All nodes that `ends` need, back to `stop`, in order; sizes come from `stop` where they can."""
        found: set[fx.Node] = set()
        stack = [end for end in ends if end is not stop]
        while stack:
            node = stack.pop()
            if node in found or self.stands_for_stream(node, stop):
                continue
            found.add(node)
            stack += self.inputs(node)
        return sorted(found, key=self.order.__getitem__)

    def stands_for_stream(self, node: fx.Node, stop: fx.Node) -> bool:
        """Whether `stop` can be read in place of `node`: it is `stop`, or an earlier value of its shape."""
        return node is stop or (node in self.like_stream and self.order[node] < self.order[stop])


def _inputs_with_changes(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """What each node reads: its arguments, and the nodes that changed one of them in place before."""
    changed_by: dict[fx.Node, list[fx.Node]] = {}
    inputs: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        read = list(node.all_input_nodes)
        inputs[node] = list(dict.fromkeys(read + [w for i in read for w in changed_by.get(i, ())]))
        for changed in node.meta.get("mutates", ()):
            changed_by.setdefault(changed, []).append(node)
    return inputs


def _classify(flow: _Flow, start: fx.Node, end: fx.Node) -> _Interval:
    """Find the addition that joins the skip from `start` to a branch, if `end` is one."""
    terms: list[tuple[fx.Node, fx.Node]] = []  # (the addition, its operand)

    def flatten(add: fx.Node) -> None:
        for operand in add.args:
            inner = isinstance(operand, fx.Node) and is_add(operand) and operand is not start
            if inner and len(operand.users) == 1 and flow.order[operand] > flow.order[start]:
                flatten(operand)
            elif isinstance(operand, fx.Node):
                terms.append((add, operand))

    if is_add(end):
        flatten(end)
    skips = [
        (add, term)
        for add, term in terms
        if (flow.origin(term) is flow.origin(start) or _is_scaled(term, start, flow))
        and (add.target is not torch.addcmul or term is add.args[0])
    ]
    branches = [term for _, term in terms if term in flow.live and all(term is not skip for _, skip in skips)]
    if len(skips) == 1 and branches:
        return _Interval(start, end, *skips[0])
    return _Interval(start, end, None, None)


def _is_scaled(term: fx.Node, start: fx.Node, flow: _Flow) -> bool:
    """Whether `term` is ``c * start`` with a constant or a parameter c."""
    return _is_product(term) and start in term.args and all(a is start or a not in flow.live for a in term.args)


def _is_product(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in _MUL) or (node.op, node.target) == ("call_method", "mul")


def is_add(node: fx.Node) -> bool:
    """Whether a node adds two values, the second one unscaled."""
    known = (node.op == "call_function" and node.target in _ADD_FUNCTIONS) or (
        node.op == "call_method" and node.target in _ADD_METHODS
    )
    plain = known and len(node.args) == 2 and not node.kwargs
    return plain or (node.op == "call_function" and node.target is torch.addcmul and len(node.args) == 3)


def _works_in_place(add: fx.Node) -> bool:
    if add.op == "call_method":
        return _ADD_METHODS[str(add.target)]
    return _ADD_FUNCTIONS.get(add.target, False)  # type: ignore[call-overload,no-any-return]


def _group(intervals: list[_Interval], flow: _Flow) -> list[list[_Interval]]:
    """Put every plain interval with the residual module before it (the first ones: with the one after)."""
    if not any(i.add for i in intervals):
        nodes = [n for n in flow.order if n in flow.live]
        if any(n.target in _JOINS for n in nodes if n.op == "call_function"):
            raise CannotSegment(Reason.CONCATENATION, "its branches are joined by concatenation, not by addition")
        if any(is_add(n) and sum(o in flow.live for o in n.args) == 2 for n in nodes):
            raise CannotSegment(Reason.NO_IDENTITY, "what is added to the branch is not the input itself")
        raise CannotSegment(Reason.NO_RESIDUAL, "nothing is added to its input")
    groups: list[list[_Interval]] = [[]]
    for interval in intervals:
        if interval.add and any(i.add for i in groups[-1]):
            # A new segment begins at the latest cut point after the last addition: what comes before it
            # is the last one's post, what comes after it (a change of layout, say) leads to the next branch.
            since = next(k for k, i in reversed(list(enumerate(groups[-1]))) if i.add) + 1
            following = [*groups[-1][since:], interval]
            keep = [k for k, i in enumerate(following) if flow.may_cut(i.start)]
            if keep:
                del groups[-1][since:]
                groups[-1] += following[: keep[-1]]
                groups.append(following[keep[-1] : -1])
        groups[-1].append(interval)
    return groups


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
            raise CannotSegment(Reason.SIDE_EFFECT, f"{node.name!r} {what}")
    for nodes, start in zip(slices, starts, strict=False):
        for node in nodes:
            if node.op != "get_attr" and node.meta.get("random") and order[node] < order[start]:
                raise CannotSegment(Reason.SIDE_EFFECT, f"{node.name!r} draws random numbers ahead of its use")


def _build(group: list[_Interval], nodes: list[fx.Node], leaf_index: dict[fx.Node, int], flow: _Flow) -> SegmentGraph:
    """Copy a segment's nodes into a graph of its own, with alpha on its skip."""
    residual = [i for i in group if i.add is not None]
    rewrite = {i.add: i for i in residual if i.add is not None}
    start, end = group[0].start, group[-1].end
    # A pre-norm block taken whole: its skip is the sum of all its skips, so alpha scales the block's input
    # once and the branches still see what they saw. With operations in between, every skip is scaled.
    whole = len(residual) == len(group) > 1 and all(i.add is i.end and i.skip is not None for i in group)
    whole = whole and not any(_is_product(i.skip) for i in group if i.skip is not None)
    graph, extras, copies = _copy(nodes, start, leaf_index, flow, rewrite={} if whole else rewrite)
    result = copies[end]
    if whole:
        result = graph.placeholders_by_name["x"]  # type: ignore[attr-defined]
        for number, interval in enumerate(group):
            result = _twin_add(graph, interval, copies, result, scale=number == 0)
    graph.output(result)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op != "call_function" or n.target not in (getattr,))
    graph.lint()
    branch = tuple(str(n.target) for n in nodes if n.op == "call_module")
    attributes = tuple(dict.fromkeys(str(n.target) for n in nodes if n.op == "get_attr"))
    kinds = {"scaled" if i.skip is not None and _is_product(i.skip) else "identity" for i in residual}
    return SegmentGraph(graph, extras, branch, "scaled" if "scaled" in kinds else "identity", attributes)


def _twin_add(graph: fx.Graph, interval: _Interval, copies: dict[fx.Node, fx.Node], twin: fx.Node, scale: bool) -> fx.Node:
    """The same addition once more, onto the scaled skip."""
    assert interval.add is not None
    left, right = interval.add.args
    left_is_skip = left is interval.skip
    operands = (twin, copies[right]) if left_is_skip else (copies[left], twin)  # type: ignore[index]
    if not scale:
        return graph.call_function(operator.add, operands)
    return graph.call_function(residual_add, (*operands, _alpha(graph), 0 if left_is_skip else 1, False))


def _alpha(graph: fx.Graph) -> fx.Node:
    return graph.placeholders_by_name["alpha"]  # type: ignore[attr-defined,no-any-return]


def _copy(
    nodes: list[fx.Node],
    start: fx.Node,
    leaf_index: dict[fx.Node, int],
    flow: _Flow,
    rewrite: dict[fx.Node, _Interval],
) -> tuple[fx.Graph, tuple[int, ...], dict[fx.Node, fx.Node]]:
    """A new graph of `nodes` with placeholders x, alpha and the arguments that they read."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    alpha = graph.placeholder("alpha")
    graph.placeholders_by_name = {"x": x, "alpha": alpha}  # type: ignore[attr-defined]
    arguments = [n for n in nodes if n.op == "placeholder"]
    copies: dict[fx.Node, fx.Node] = {n: graph.placeholder(n.name) for n in arguments}
    if any(start in n.meta.get("mutates", ()) and n not in rewrite for n in nodes):
        x = graph.call_method("clone", (x,))
    copies[start] = x

    def lookup(node: fx.Node) -> fx.Node:
        return copies[node] if node in copies else x  # a value whose sizes the stream has too

    for node in nodes:
        if node in copies:
            continue
        interval = rewrite.get(node)
        if interval is not None:
            new = _rewritten_add(graph, node, interval, lookup, alpha)
        elif is_add(node) and _works_in_place(node) and node.args[0] is start:
            new = graph.call_function(operator.add, tuple(lookup(a) for a in node.args))  # type: ignore[arg-type]
        else:
            new = graph.node_copy(node, lookup)
            new.meta = {}
        new.meta["of"] = node
        copies[node] = new
    x.meta["of"] = start
    for argument in arguments:
        copies[argument].meta["of"] = argument
    return graph, tuple(leaf_index[n] for n in arguments), copies


def _rewritten_add(
    graph: fx.Graph, node: fx.Node, interval: _Interval, lookup: Callable[[fx.Node], fx.Node], alpha: fx.Node
) -> fx.Node:
    args = fx.node.map_arg(node.args, lookup)
    if node.target is torch.addcmul:
        scaled = graph.call_function(scale_skip, (args[0], alpha))
        return graph.call_function(torch.addcmul, (scaled, *args[1:]))
    skip = 0 if node.args[0] is interval.skip else 1
    # x += F(x) would change the stream itself; F(x) += x changes only what the branch made.
    in_place = _works_in_place(node) and skip == 1
    return graph.call_function(residual_add, (*args, alpha, skip, in_place))


# -- what the generated functions call -------------------------------------------------------


def residual_add(
    left: torch.Tensor, right: torch.Tensor, alpha: float, skip: int, in_place: bool = False
) -> torch.Tensor:
    """``F(x) + alpha * x`` (Dr2Net, equation 4) in the operand order of the source.

    Args:
        left, right: the operands; number `skip` of them is the skip, the other one the branch.
        alpha: coefficient of the skip; at 1 the operation is the source's own, bit for bit.
        in_place: whether the source added into `left`.
    """
    if alpha == 1.0:
        return left.add_(right) if in_place else left + right
    branch, x = (right, left) if skip == 0 else (left, right)
    if alpha == 0.0 and branch.shape == x.shape and branch.stride() == x.stride():
        return branch.to(torch.result_type(branch, x))
    if in_place:
        return branch.add_(x, alpha=alpha)
    if skip == 0 and branch.stride() != x.stride():
        return alpha * x + branch  # the result's strides follow the first operand, as in the source
    return torch.add(branch, x, alpha=alpha)


def scale_skip(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """``alpha * x``; x itself at alpha = 1."""
    return x if alpha == 1.0 else alpha * x


def compile_graph(graph: fx.Graph) -> Callable[..., Any]:
    """The function ``(block, x, alpha, *extras)`` that a graph describes."""
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, "<revsurgeon segment>", "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function


def readable_code(graph: fx.Graph) -> str:
    """A graph's Python source without torch.fx's bookkeeping."""
    lines = graph.python_code("self").src.strip().splitlines()
    kept = [line.split(";")[0].rstrip() for line in lines if not line.startswith("torch.fx.")]
    source = "\n".join(line for line in kept if line.strip()).replace("def forward(", "def segment(", 1)
    return source.replace(f"{__name__.replace('.', '_')}_", "")


def holds_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a tensor, or a structure with one in it."""
    value = node.meta.get("value")
    if isinstance(value, torch.Tensor):
        return True
    return isinstance(value, (tuple, list, dict)) and any(isinstance(v, torch.Tensor) for v in pytree.tree_leaves(value))
