"""Tensors that are kept for backward outside of any one autograd node."""

from __future__ import annotations

from typing import Any

import torch

from revsurgeon.errors import RevsurgeonError


class Held:
    """Tensors kept for backward the way autograd keeps them.

    They go through the caller's saved-tensor hooks (so that what is stored can be counted, or moved to the
    CPU), and a change in place is found when they are taken out.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        with torch.enable_grad():
            anchor = torch.empty(0, device="cpu", requires_grad=True)
            self._handle: torch.Tensor | None = _Keep.apply(anchor, *tensors)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors.

        Raises:
            RuntimeError: they were changed in place (torch's own message), or let go.
        """
        if self._handle is None:
            raise RevsurgeonError(
                "backward runs a second time through a chain whose streams have been let go.",
                hint="Pass retain_graph=True to the first backward.",
            )
        return self._handle.grad_fn.saved_tensors  # type: ignore[union-attr]

    def let_go(self) -> None:
        """Free the memory."""
        self._handle = None


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (None,) * (1 + len(ctx.saved_tensors))
