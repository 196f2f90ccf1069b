"""Tensors that are kept for backward outside of any one autograd node."""

from __future__ import annotations

from typing import Any

import torch

from revsurgeon.errors import ChainBrokenError, RevsurgeonError


class Held:
    """Tensors kept for backward the way autograd keeps them.

    They go through the caller's saved-tensor hooks (so that what is stored can be counted, or moved to the
    CPU), and a change in place is found when they are taken out.

    Args:
        tensors: to keep.
        checked: whether tensors that such hooks give back with other values are to be refused. (An activation
            checkpoint computes them again, and knows them by their shapes alone.)
    """

    def __init__(self, *tensors: torch.Tensor, checked: bool = False) -> None:
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        self._sums = [_sum_of_bits(tensor) for tensor in tensors] if checked and hooks else []
        with torch.enable_grad():
            anchor = torch.empty(0, device="cpu", requires_grad=True)
            self._handle: torch.Tensor | None = _Keep.apply(anchor, *tensors)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors.

        Raises:
            RuntimeError: they were changed in place (torch's own message), or let go.
            ChainBrokenError: they are checked, and are others than those that were kept.
        """
        if self._handle is None:
            raise RevsurgeonError(
                "backward runs a second time through a chain whose streams have been let go.",
                hint="Pass retain_graph=True to the first backward.",
            )
        tensors: tuple[torch.Tensor, ...] = self._handle.grad_fn.saved_tensors  # type: ignore[union-attr]
        if self._sums and not all(map(torch.equal, map(_sum_of_bits, tensors), self._sums)):
            raise ChainBrokenError(
                "what a chain kept for backward came back with other values.",
                hint="An activation checkpoint around the chain did not repeat its forward: run "
                "backward before coefficients, training mode or rates change. Or a saved-tensor hook rounds.",
            )
        return tensors

    def let_go(self) -> None:
        """Free the memory."""
        self._handle = None


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """A sum that differs when the values do, and does not when only their order in memory does."""
    return tensor.detach().view(torch.int64 if tensor.itemsize == 8 else torch.int32).sum()


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (None,) * (1 + len(ctx.saved_tensors))
