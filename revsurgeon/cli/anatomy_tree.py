"""How an anatomy looks on a terminal: a tree of chains, blocks and segments, and what was left alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.syntax import Syntax
from rich.text import Text
from rich.tree import Tree

from revsurgeon.cli.quantities import count, plural, shape

if TYPE_CHECKING:
    from rich.console import RenderableType

    from revsurgeon.anatomy.report import Anatomy, Block, Chain, Segment, Skipped

_PATHS_SHOWN = 4
_REASONS_SHOWN = 8


def headline(anatomy: Anatomy) -> str:
    """Return the anatomy in one line."""
    if not anatomy.chains:
        return f"nothing can be rewired; {count(anatomy.parameters)} parameters"
    return (
        f"{plural(len(anatomy.segments), 'segment')} in {plural(len(anatomy.chains), 'chain')}, "
        f"{anatomy.share:.1%} of {count(anatomy.parameters)} parameters"
    )


def tree(name: str, anatomy: Anatomy, *, everything: bool) -> Tree:
    """Return the tree; without `everything`, runs of alike blocks and long lists are summarised."""
    root = Tree(Text.assemble((name, "bold"), "  ", headline(anatomy)))
    for chain in anatomy.chains:
        _add_chain(root, chain, everything=everything)
    if anatomy.skipped:
        _add_skipped(root, anatomy.skipped, everything=everything)
    return root


def listings(anatomy: Anatomy, *, everything: bool, highlighted: bool) -> Iterator[RenderableType]:
    """Yield the source of each segment's function, and before it which segments run it.

    Segments with the same source share one listing, unless `everything` is asked for.
    """
    users: dict[object, list[Segment]] = {}
    for segment in anatomy.segments:
        key = (segment.block, segment.index) if everything else segment.code
        users.setdefault(key, []).append(segment)
    for segments in users.values():
        names = [f"{segment.block} segment {segment.index}" for segment in segments]
        yield Text("\n" + _some(names, everything=everything), style="bold")
        code = segments[0].code.rstrip("\n")
        if highlighted:
            yield Syntax(code, "python", theme="ansi_dark", background_color="default", word_wrap=True)
        else:
            yield code


def _add_chain(root: Tree, chain: Chain, *, everything: bool) -> None:
    streams = sorted({segment.shape for segment in chain.segments})
    branch = root.add(
        Text.assemble(
            "chain ",
            (chain.name, "bold cyan"),
            f"  {plural(len(chain.blocks), 'block')}, {plural(len(chain.segments), 'segment')}, "
            f"streams of {', '.join(map(shape, streams))}",
        )
    )
    for _, run in groupby(chain.blocks, key=_appearance):
        first, *rest = run
        _add_block(branch, first)
        if everything:
            for block in rest:
                _add_block(branch, block)
        elif len(rest) == 1:
            branch.add(Text.assemble((rest[0].path, "cyan"), ("  like the one above", "dim")))
        elif rest:
            span = f"{rest[0].path} to {rest[-1].path}"
            branch.add(Text.assemble((span, "cyan"), (f"  {len(rest)} blocks like the one above", "dim")))


def _add_block(branch: Tree, block: Block) -> None:
    node = branch.add(Text(block.path, style="cyan"))
    for segment in block.segments:
        node.add(
            Text.assemble(
                f"{segment.index}: {', '.join(_relative(segment)) or '(no submodule)'}",
                (
                    f"  {segment.skip} skip, {plural_parameters(segment.parameters)}, {shape(segment.shape)}",
                    "dim",
                ),
            )
        )


def plural_parameters(number: int) -> str:
    """Return a number of parameters, or that there are none."""
    return f"{count(number)} parameters" if number else "no parameters"


def _appearance(block: Block) -> tuple[object, ...]:
    """What two blocks must share to be shown as alike."""
    return tuple((_relative(s), s.skip, s.parameters, s.shape) for s in block.segments)


def _relative(segment: Segment) -> tuple[str, ...]:
    return tuple(path.removeprefix(f"{segment.block}.") for path in segment.branch)


def _add_skipped(root: Tree, skipped: Sequence[Skipped], *, everything: bool) -> None:
    branch = root.add(Text.assemble(("left alone", "bold yellow"), f"  {plural(len(skipped), 'module')}"))
    if everything:
        for module in skipped:
            _add_reason(branch, module.path, module.reason, module.detail)
        return
    groups: dict[tuple[str, str], list[str]] = {}
    for module in skipped:
        groups.setdefault((module.reason, module.detail), []).append(module.path)
    for (reason, detail), paths in list(groups.items())[:_REASONS_SHOWN]:
        _add_reason(branch, _some(paths, everything=False), reason, detail)
    if len(groups) > _REASONS_SHOWN:
        branch.add(Text(f"{len(groups) - _REASONS_SHOWN} more reasons: --all lists everything", style="dim"))


def _add_reason(branch: Tree, where: str, reason: str, detail: str) -> None:
    branch.add(Text.assemble(where, "  ", (str(reason), "yellow"), (f"  {detail}" if detail else "", "dim")))


def _some(names: Sequence[str], *, everything: bool) -> str:
    if everything or len(names) <= _PATHS_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: _PATHS_SHOWN - 1])} and {len(names) - _PATHS_SHOWN + 1} more"
