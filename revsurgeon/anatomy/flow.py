"""Follow the stream through a block's graph: what carries it, where it can be cut, what is added to it."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import fx
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.report import Reason

_ADD_FUNCTIONS = {operator.add: False, operator.iadd: True, torch.add: False, torch.Tensor.add: False}
_ADD_METHODS = {"add": False, "add_": True, "__add__": False, "__iadd__": True}
_MUL = {operator.mul, operator.imul, torch.mul}
_JOINS = {torch.cat, torch.concat, torch.concatenate, torch.stack}


class SegmentError(Exception):
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
class Interval:
    """What lies between two neighbouring cut points."""

    start: fx.Node
    end: fx.Node
    add: fx.Node | None  # the addition that joins the skip, when this is a residual module
    skip: fx.Node | None  # its operand on the skip side


class Flow:
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
            raise SegmentError(Reason.NO_RESIDUAL, "the output does not depend on the input")
        shape = source.meta["value"].shape
        if not isinstance(sink.meta["value"], torch.Tensor) or sink.meta["value"].shape != shape:
            found = getattr(sink.meta["value"], "shape", None)
            raise SegmentError(Reason.SHAPE_CHANGES, f"{tuple(shape)} -> {found and tuple(found)}")
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

    def depends(self, node: fx.Node) -> bool:
        """Whether a value needs the stream for more than its size."""
        return node in self.live or bool(self._size_roots[node] - self.like_stream)

    def parents(self, node: fx.Node) -> set[fx.Node]:
        """The live values that `node` needs, sizes of stream-shaped values aside."""
        found: set[fx.Node] = set()
        for i in self.inputs(node):
            found |= {i} if i in self.live else self._size_roots[i] - self.like_stream
        return found

    def groups(self, granularity: str) -> list[list[Interval]]:
        """The intervals between dominators, grouped into segments.

        Raises:
            SegmentError: there is no residual module, or the graph's values cannot be separated.
        """
        while True:
            path, dominators = self._dominators()
            groups = _group([_classify(self, a, b) for a, b in pairwise(dominators)], self)
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
            raise SegmentError(Reason.NO_RESIDUAL, "the output does not depend on the input alone")
        return path, dominators

    def may_cut(self, node: fx.Node) -> bool:
        """Whether a segment may begin at a dominator: it has the stream's shape and stays as it is."""
        return self._is_like_stream(node) and not self._changed_later(node)

    def origin(self, node: fx.Node) -> fx.Node:
        """The node whose very value `node` passes on (nn.Identity, a dropout that is off)."""
        for i in self.inputs(node):
            if (
                node.op != "get_attr"
                and i.meta["value"] is node.meta["value"]
                and not node.meta.get("mutates")
            ):
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

    def ancestors(self, node: fx.Node) -> set[fx.Node]:
        """All nodes that a node's value is made from."""
        found: set[fx.Node] = set()
        stack = [node]
        while stack:
            new = set(self.inputs(stack.pop())) - found
            found |= new
            stack += new
        return found

    def slice(self, end: fx.Node, start: fx.Node) -> list[fx.Node]:
        """All nodes that `end` needs, back to `start`, in order."""
        return self.slice_of([end], stop=start)

    def slice_of(
        self, ends: Iterable[fx.Node], stop: fx.Node, given: Collection[fx.Node] = ()
    ) -> list[fx.Node]:
        """All nodes that `ends` need, back to `stop` and what is given; sizes come from `stop` if known."""
        found: set[fx.Node] = set()
        stack = [end for end in ends if end is not stop]
        while stack:
            node = stack.pop()
            if node in found or node in given or self.stands_for_stream(node, stop):
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


def _classify(flow: Flow, start: fx.Node, end: fx.Node) -> Interval:
    """Find the addition that joins the skip from `start` to a branch, if `end` is one."""
    terms: list[tuple[fx.Node, fx.Node]] = []  # (the addition, its operand)

    def flatten(add: fx.Node) -> None:
        for operand in add.args:
            if not isinstance(operand, fx.Node):
                continue
            inner = is_add(operand) and operand is not start and len(operand.users) == 1
            if inner and flow.order[operand] > flow.order[start]:
                flatten(operand)
            else:
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
        return Interval(start, end, *skips[0])
    return Interval(start, end, None, None)


def _is_scaled(term: fx.Node, start: fx.Node, flow: Flow) -> bool:
    """Whether `term` is ``c * start`` with a constant or a parameter c."""
    return (
        is_product(term) and start in term.args and all(a is start or a not in flow.live for a in term.args)
    )


def joins(nodes: Iterable[fx.Node]) -> bool:
    """Whether values are concatenated or stacked."""
    return any(n.op == "call_function" and n.target in _JOINS for n in nodes)


def ends_in_join(graph: fx.Graph) -> bool:
    """Whether an output is values concatenated or stacked, with no addition of two values behind that."""
    waiting, seen = list(graph.output_node().all_input_nodes), set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node in seen or (is_add(node) and len(node.all_input_nodes) == 2):
            continue
        if joins([node]):
            return True
        seen.add(node)
        waiting += node.all_input_nodes
    return False


def is_product(node: fx.Node) -> bool:
    """Whether a node multiplies two values."""
    return (node.op == "call_function" and node.target in _MUL) or (node.op, node.target) == (
        "call_method",
        "mul",
    )


def is_add(node: fx.Node) -> bool:
    """Whether a node adds two values, the second one unscaled."""
    known = (node.op == "call_function" and node.target in _ADD_FUNCTIONS) or (
        node.op == "call_method" and node.target in _ADD_METHODS
    )
    plain = known and len(node.args) == 2 and not node.kwargs
    return plain or (node.op == "call_function" and node.target is torch.addcmul and len(node.args) == 3)


def works_in_place(add: fx.Node) -> bool:
    """Whether an addition changes its first operand."""
    if add.op == "call_method":
        return _ADD_METHODS[str(add.target)]
    return add.op == "call_function" and _ADD_FUNCTIONS.get(add.target, False)  # type: ignore[arg-type]


def _group(intervals: list[Interval], flow: Flow) -> list[list[Interval]]:
    """Put every plain interval with the residual module before it (the first ones: with the one after)."""
    if not any(i.add for i in intervals):
        nodes = [n for n in flow.order if n in flow.live]
        if joins(nodes):
            raise SegmentError(
                Reason.CONCATENATION, "its branches are joined by concatenation, not by addition"
            )
        if any(is_add(n) and sum(o in flow.live for o in n.args) == 2 for n in nodes):
            raise SegmentError(Reason.NO_IDENTITY, "what is added to the branch is not the input itself")
        raise SegmentError(Reason.NO_RESIDUAL, "nothing is added to its input")
    groups: list[list[Interval]] = [[]]
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


def holds_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a tensor, or a structure with one in it."""
    value = node.meta.get("value")
    if isinstance(value, torch.Tensor):
        return True
    return isinstance(value, (tuple, list, dict)) and any(
        isinstance(v, torch.Tensor) for v in pytree.tree_leaves(value)
    )
