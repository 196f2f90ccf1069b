"""The reversible step as autograd sees it: the forward keeps nothing, the backward rebuilds.

In the letters of Dr2Net (Zhao et al., CVPR 2024, equations 3 to 6), with g for the gradient of the loss:

    forward    x_i = G_i(x_{i-1}) + y_{i-1}           y_i = beta * x_{i-1}
    inverse    x_{i-1} = y_i / beta                   y_{i-1} = x_i - G_i(x_{i-1})
    backward   g(x_{i-1}) = G_i'^T g(x_i) + beta * g(y_i)      g(y_{i-1}) = g(x_i)

The streams themselves are on the tape (`revsurgeon.reversible.tape`). What runs through autograd is x as
the branch sees it, and in place of y a tensor of the same shape without memory of its own: only gradients
flow along it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from revsurgeon.errors import RevsurgeonError
from revsurgeon.reversible.tape import Tape


def stand_in(x: torch.Tensor) -> torch.Tensor:
    """A tensor like x that takes no memory, for gradients to flow along."""
    return x.new_zeros(()).expand(x.shape)


def weighted_sum(first: torch.Tensor | None, second: torch.Tensor | None, beta: float) -> torch.Tensor | None:
    """``first + beta * second``, where either may be missing."""
    if second is None:
        return first
    if first is None:
        return beta * second
    return torch.add(first, second, alpha=beta)


class Start(torch.autograd.Function):
    """Enter a chain: x_0 as the branch sees it, y_0 = beta * x_0."""

    @staticmethod
    def forward(ctx: Any, value: Callable[[], torch.Tensor], beta: float, x: torch.Tensor) -> Any:
        """`value` gives what the first branch sees of the chain's input x."""
        ctx.set_materialize_grads(False)
        ctx.beta, ctx.dtype = beta, x.dtype
        x_0 = value()
        return x_0, stand_in(x_0)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        """g(x) = g(x_0) + beta * g(y_0)."""
        grad = weighted_sum(grads[0], grads[1], ctx.beta)
        return None, None, None if grad is None else grad.to(ctx.dtype)


class Step(torch.autograd.Function):
    """One segment of a reversible chain."""

    @staticmethod
    def forward(
        ctx: Any, tape: Tape, record: Any, x: torch.Tensor, y: torch.Tensor, *inputs: torch.Tensor
    ) -> Any:
        """Run the segment on x and the tape's streams; y and inputs are here for their gradients."""
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.index = tape, len(tape.records)
        value, sides = tape.advance(record, x, inputs[: sum(record.wants_grad)])
        tensors = [side for side in sides if isinstance(side, torch.Tensor)]
        ctx.mark_non_differentiable(*(t for t in tensors if not (t.is_floating_point() or t.is_complex())))
        return value, stand_in(value), *sides

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        """Rebuild the segment's input, recompute, and differentiate."""
        if torch.is_grad_enabled():
            raise RevsurgeonError(
                "a reversible chain cannot be differentiated twice (backward with create_graph=True).",
                hint="Use `with revsurgeon.stored_activations(model):` around forward and backward.",
            )
        grad_x, grad_y, *grad_sides = grads
        tape: Tape = ctx.tape
        record = tape.records[ctx.index]
        with tape.lock:
            record.check_unchanged()
            tape.begin_backward()
            with tape.as_in_forward():
                back = tape.begin_step(ctx.index)
                through_g = record.differentiate(back, grad_x, grad_sides)
                tape.end_step(ctx.index, back)
                del back
            if ctx.index == 0:
                tape.finish()
        return None, None, weighted_sum(through_g[0], grad_y, tape.arithmetic.beta), grad_x, *through_g[1:]


class Couple(torch.autograd.Function):
    """The same coupling for stored activations: autograd differentiates G, this joins the streams."""

    @staticmethod
    def forward(
        ctx: Any,
        couple: Callable[[torch.Tensor], torch.Tensor],
        g: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
    ) -> Any:
        """`couple` gives x_i for G; x and y are here for their gradients."""
        ctx.set_materialize_grads(False)
        ctx.dtype = g.dtype
        x_i = couple(g)
        return x_i, stand_in(x_i)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        """g(G) = g(x_i); g(y_i) goes to where beta * x_{i-1} was taken; g(y_{i-1}) = g(x_i)."""
        grad_x, grad_y = grads
        return None, None if grad_x is None else grad_x.to(ctx.dtype), grad_y, grad_x


class Fork(torch.autograd.Function):
    """Split x_{i-1} into what the branch reads and what becomes y_i = beta * x_{i-1}.

    With it the gradients of a stored chain are added in the same order as those of a reversible one.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, beta: float) -> Any:
        """x for the branch, and its stand-in for y."""
        ctx.set_materialize_grads(False)
        ctx.beta = beta
        return x.view_as(x), stand_in(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        """g(x_{i-1}) = G'^T g(x_i) + beta * g(y_i)."""
        return weighted_sum(grads[0], grads[1], ctx.beta), None


class Merge(torch.autograd.Function):
    """Leave a chain: (x_N + y_N) / (1 + beta), or x_N."""

    @staticmethod
    def forward(
        ctx: Any, merged: Callable[[], torch.Tensor], beta: float, rule: str, x: torch.Tensor, y: torch.Tensor
    ) -> Any:
        """`merged` gives the chain's output; x and y are here for their gradients."""
        ctx.set_materialize_grads(False)
        ctx.beta, ctx.rule, ctx.dtype = beta, rule, x.dtype
        return merged()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        """Both streams get the gradient divided by 1 + beta; x_N alone gets it whole."""
        grad = grads[0]
        if grad is None:
            return None, None, None, None, None
        if ctx.rule == "last":
            return None, None, None, grad.to(ctx.dtype), None
        shared = grad.to(ctx.dtype) / (1.0 + ctx.beta)
        return None, None, None, shared, shared
