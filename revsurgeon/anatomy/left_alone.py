"""A reason for everything that looked like a block and was left alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import nn

from revsurgeon.anatomy.flow import SegmentError
from revsurgeon.anatomy.probe import Call
from revsurgeon.anatomy.report import Reason, Skipped

_VAGUE = frozenset({Reason.NO_RESIDUAL, Reason.SHAPE_CHANGES})


def left_alone(
    model: nn.Module, root: Call, rewired: set[Call], refusals: dict[Call, SegmentError]
) -> Iterator[Skipped]:
    """A reason for every listed module (of a Sequential, a ModuleList) that looked like a block."""
    calls: list[Call] = []
    stack = [root]
    while stack:
        call = stack.pop()
        calls.append(call)
        stack += reversed(call.children)
    inside = {c for r in rewired for c in _descendants(r)} | rewired
    around = {parent for r in rewired for parent in _ancestors(r)}
    called = {c.path for c in calls}
    hidden = inside | around
    refused = [
        c
        for c in calls
        if c in refusals and c not in hidden and _is_listed(c.path) and list(c.module.children())
    ]
    # Of modules inside each other the outermost speaks, but one whose reason says little gives way.
    telling = [c for c in refused if refusals[c].reason not in _VAGUE]
    around_telling = {ancestor for c in telling for ancestor in _ancestors(c)}
    spoken: set[Call] = set()
    for call in [*telling, *(c for c in refused if c not in telling and c not in around_telling)]:
        if spoken.isdisjoint(_ancestors(call)):
            spoken.add(call)
    for call in refused:
        if call in spoken:
            yield Skipped(call.path, refusals[call].reason, refusals[call].detail)
    for path, module in model.named_modules():
        unreached = _is_listed(path) and path not in called and list(module.children())
        if unreached and not any(path.startswith(f"{c.path}.") for c in inside):
            yield Skipped(path, Reason.NOT_CALLED, "the example inputs do not reach it")


def _descendants(call: Call) -> Iterator[Call]:
    for child in call.children:
        yield child
        yield from _descendants(child)


def _ancestors(call: Call) -> Iterator[Call]:
    parent = call.parent
    while parent is not None:
        yield parent
        parent = parent.parent


def _is_listed(path: str) -> bool:
    """Whether a module is a member of a list-like container, by its name (it ends in a number)."""
    return bool(re.search(r"\d$", path.rpartition(".")[2]))


def unique(skipped: Iterable[Skipped]) -> list[Skipped]:
    """One reason for each path, the last one given."""
    return list({s.path: s for s in skipped}.values())
