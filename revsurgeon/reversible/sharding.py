"""Blocks that FSDP2 has sharded (`torch.distributed.fsdp.fully_shard`), gathered when they are rebuilt.

FSDP2 gathers a block's parameters before its forward, and once more when the gradient of its output arrives,
in time for its segments to be rebuilt. They are the same tensors both times, which is what a record holds on
to, and their gradients are reduced when that of the block's input is there. What FSDP2 cannot foresee is a
backward that begins in the middle of a chain, because the loss reads a tap: the blocks behind the tap are
rebuilt although no gradient comes to them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from torch import nn

from revsurgeon.errors import UnsupportedModelError


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on this very module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # importing it takes seconds; who shards has done it
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def has_sharded_parts(model: nn.Module) -> bool:
    """Whether `fully_shard` was called on a network or on anything inside it."""
    return any(is_sharded(module) for module in model.modules())


def refuse_sharded_parts(block: nn.Module, name: str) -> None:
    """Refuse a block with a part that is sharded on its own.

    The recomputation would run that part's hooks, inside the backward pass that they belong to.

    Raises:
        UnsupportedModelError: there is one.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return
    for path, module in block.named_modules():
        if path and is_sharded(module):
            raise UnsupportedModelError(
                f"a part of block {name!r} is sharded on its own.",
                where=f"{name}.{path}",
                hint="Call fully_shard on the whole block, or on a module that holds it, not on parts of it.",
            )


@contextlib.contextmanager
def gathered(block: nn.Module) -> Iterator[None]:
    """Have the parameters of a block in memory inside this context, if it is sharded."""
    if not is_sharded(block):
        yield
        return
    before = list(block.parameters())
    block.unshard()  # type: ignore[operator]
    was_sharded = any(now is not then for now, then in zip(block.parameters(), before, strict=True))
    try:
        yield
    finally:
        if was_sharded:
            block.reshard()  # type: ignore[operator]
