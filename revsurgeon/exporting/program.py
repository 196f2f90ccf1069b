"""A network traced by torch.export, for a batch of any size where that can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.errors import UsageError
from revsurgeon.rewiring.measure import Arguments, batch_size, other_batch

Batch = Literal["auto", "any", "fixed"]

# What torch.export raises about a network; its own classes derive from the first.
CANNOT = (RuntimeError, ValueError, TypeError, AssertionError)


@dataclass(frozen=True)
class Program:
    """A traced network.

    Attributes:
        exported: what torch.export made.
        arguments: that it was traced with.
        batch_size: of these.
        any_batch: whether it takes a batch of any size.
        dynamic_shapes: as torch.export was told; None with a fixed batch.
        reason: why it does not take any batch.
    """

    exported: torch.export.ExportedProgram
    arguments: Arguments
    batch_size: int
    any_batch: bool
    dynamic_shapes: Any
    reason: str | None

    @property
    def operations(self) -> int:
        """How many operations it has."""
        return sum(node.op == "call_function" for node in self.exported.graph.nodes)


def traced(model: nn.Module, arguments: Arguments, batch: Batch) -> Program:
    """Trace a network; to be called inside `for_inference`.

    Args:
        model: rewired.
        arguments: an example of its arguments.
        batch: "auto", "any" or "fixed", see `revsurgeon.export`.

    Raises:
        UsageError: torch.export cannot follow the network, or not for any batch.
    """
    if batch not in ("auto", "any", "fixed"):
        raise UsageError(f"batch {batch!r} is not auto, any or fixed.")
    reason = "it was asked for" if batch == "fixed" else None
    if batch != "fixed":
        try:
            return _for_any_batch(model, arguments)
        except CANNOT as error:
            reason = first_lines(error)
            if batch == "any":
                raise UsageError(
                    f"{type(model).__name__} cannot be exported for a batch of any size.",
                    where=reason,
                    hint="Leave out --batch any: the program then takes batches as large as the example's.",
                ) from error
    try:
        exported = torch.export.export(model, *arguments, strict=False)
    except CANNOT as error:
        raise UsageError(
            f"torch.export cannot follow {type(model).__name__}.",
            where=first_lines(error),
            hint="Export its weights (--to weights), or run it as it is, under torch.inference_mode().",
        ) from error
    return Program(exported, arguments, batch_size(arguments), False, None, reason)


def _for_any_batch(model: nn.Module, arguments: Arguments) -> Program:
    size = batch_size(arguments)
    if size == 1:  # torch.export takes a size of 1 for a fixed one
        arguments = next(other_batch(arguments))
        size = batch_size(arguments)
    dimension = torch.export.Dim("batch", min=1)

    def open_size(leaf: Any) -> Any:
        batched = isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == size
        return {0: dimension} if batched else None

    args, kwargs = pytree.tree_map(open_size, arguments)
    shapes = kwargs if kwargs else args  # all inputs are by position, or all by name
    exported = torch.export.export(model, *arguments, dynamic_shapes=shapes, strict=False)
    return Program(exported, arguments, size, True, shapes, None)


def first_lines(error: BaseException) -> str:
    """The first two lines of what a library says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n".join(line[:300] for line in lines[:2]) or type(error).__name__
