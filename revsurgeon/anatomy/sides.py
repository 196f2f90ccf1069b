"""Where the values belong that a block gives out beside the stream: auxiliary features, states, weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from revsurgeon.anatomy.flow import Flow, Interval, SegmentError, holds_tensor
from revsurgeon.anatomy.report import Reason


def place_side_outputs(
    flow: Flow, outputs: Iterable[fx.Node], groups: list[list[Interval]], slices: list[list[fx.Node]]
) -> list[list[fx.Node]]:
    """Give every side output to the segment that can compute it from its own input.

    What is computed from the block's output alone is computed from it once more outside, and belongs to none.

    Args:
        flow: of the block's graph.
        outputs: what leaves the block beside the stream.
        groups: the intervals of each segment.
        slices: the nodes of each segment; a side output's nodes are added to them.

    Returns:
        For each segment its side outputs.

    Raises:
        SegmentError: a side output needs values of several segments.
    """
    sides: list[list[fx.Node]] = [[] for _ in groups]
    cuts = {group[-1].end for group in groups}
    for node in dict.fromkeys(n for n in outputs if flow.depends(n)):
        if holds_tensor(node) and not isinstance(node.meta["value"], torch.Tensor):
            raise SegmentError(
                Reason.SIDE_OUTPUT, "it gives out a structure that is computed from the stream"
            )
        if _computed_from(flow, flow.sink, node) is not None:
            continue
        for number in reversed(range(len(groups))):
            needed = _computed_from(flow, groups[number][0].start, node)
            if needed is not None and cuts.isdisjoint(needed):
                sides[number].append(node)
                together = {*slices[number], *needed}
                slices[number] = sorted(together, key=flow.order.__getitem__)
                break
        else:
            raise SegmentError(
                Reason.SIDE_OUTPUT, "it gives out a second value that several residual modules take part in"
            )
    return sides


def _computed_from(flow: Flow, start: fx.Node, end: fx.Node) -> list[fx.Node] | None:
    """The nodes between `start` and `end`, if `end` needs no other value of the stream than `start`."""
    if flow.order[end] <= flow.order[start]:
        return None
    nodes = flow.slice_of([end], stop=start)
    inside = {start, *nodes}
    for node in nodes:
        if node is flow.source:
            return None
        if node in flow.live and any(i in flow.live and i not in inside for i in flow.inputs(node)):
            return None
    return nodes
