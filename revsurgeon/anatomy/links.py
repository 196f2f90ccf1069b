"""Link blocks to chains: runs in which each block's output is the next one's input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import torch

from revsurgeon.anatomy.probe import Call, Stamp
from revsurgeon.anatomy.report import Block


@dataclass(eq=False)
class Found:
    """A call that can be rewired as a block."""

    call: Call
    block: Block
    inputs: Stamp
    output: torch.Tensor
    output_stamp: Stamp


def link(found: Iterable[Found]) -> list[list[Found]]:
    """Maximal runs in which each block's output object is the next one's input."""
    runs: list[list[Found]] = []
    ends: dict[Stamp, list[Found]] = {}
    for block in found:
        run = ends.pop(block.inputs, None)
        if run is None:
            run = []
            runs.append(run)
        run.append(block)
        ends[block.output_stamp] = run
    return runs


def one_run_each(runs: list[list[Found]]) -> tuple[list[list[Found]], list[str]]:
    """Runs of the same blocks are one chain that runs twice; blocks of different runs are left out.

    So is a block inside of another one: where a module is called twice, it may be a block itself in one call,
    and hold one in the other.
    """
    distinct: dict[tuple[str, ...], list[Found]] = {}
    for run in runs:
        distinct.setdefault(tuple(f.block.path for f in run), run)
    uses = Counter(path for paths in distinct for path in set(paths))
    conflicts = sorted(path for path, count in uses.items() if count > 1 or _lies_inside(path, uses))
    kept: list[list[Found]] = []
    for run in distinct.values():
        kept += link([f for f in run if f.block.path not in conflicts])
    return kept, conflicts


def _lies_inside(path: str, others: Container[str]) -> bool:
    """Whether a module is a part of one of the others."""
    parts = path.split(".")
    return any(".".join(parts[:length]) in others for length in range(1, len(parts)))


def names(runs: list[list[str]]) -> list[str]:
    """The common prefix of the blocks' paths, told apart where two chains share it."""
    found: list[Sequence[str]] = []
    for paths in runs:
        if len(set(paths)) == 1:
            found.append([paths[0]])
            continue
        found.append(_common([p.split(".") for p in paths]) or [paths[0]])
    prefixes = [".".join(parts) for parts in found]
    shared = Counter(prefixes)
    return [
        f"{prefix}:{paths[0]}" if shared[prefix] > 1 else prefix
        for prefix, paths in zip(prefixes, runs, strict=True)
    ]


def _common(parts: list[list[str]]) -> list[str]:
    """The leading parts that all dotted paths share."""
    shared: list[str] = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return shared


def count_segments(run: list[Found]) -> int:
    """How many segments a run of blocks has."""
    return sum(len(f.block.segments) for f in run)
