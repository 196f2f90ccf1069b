"""What the segments' generated functions call, and how a graph becomes such a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx


def residual_add(
    left: torch.Tensor, right: torch.Tensor, alpha: float | torch.Tensor, skip: int, in_place: bool = False
) -> torch.Tensor:
    """``F(x) + alpha * x`` (Dr2Net, equation 4) in the operand order of the source.

    Args:
        left, right: the operands; number `skip` of them is the skip, the other one the branch. That may be
            a plain number: `sum` begins with one.
        alpha: coefficient of the skip; at 1 the operation is the source's own, bit for bit. A tensor of no
            dimension in a compiled segment, whose one graph serves all values.
        in_place: whether the source added into `left`.
    """
    branch, x = (right, left) if skip == 0 else (left, right)
    if isinstance(alpha, torch.Tensor):
        total = alpha * x + branch if skip == 0 else branch + alpha * x
        return total.to(left.dtype) if in_place else total
    if alpha == 1.0:
        return left.add_(right) if in_place else left + right
    if not isinstance(branch, torch.Tensor):
        return alpha * x + branch
    if alpha == 0.0 and branch.shape == x.shape and branch.stride() == x.stride():
        return branch.to(torch.result_type(branch, x))
    if in_place:
        return branch.add_(x, alpha=alpha)
    if skip == 0 and branch.stride() != x.stride():
        return alpha * x + branch  # the result's strides follow the first operand, as in the source
    return torch.add(branch, x, alpha=alpha)


def scale_skip(x: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
    """``alpha * x``; x itself at alpha = 1."""
    return x if isinstance(alpha, float) and alpha == 1.0 else alpha * x


def compile_graph(graph: fx.Graph, name: str = "segment") -> Callable[..., Any]:
    """The function ``(block, x, alpha, *extras)`` that a graph describes.

    Args:
        graph: its placeholders are x, alpha and the extras.
        name: shown in tracebacks; torch.compile also tells functions apart by it.
    """
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(compile(code.src, f"<revsurgeon {name}>", "exec"), namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function


def readable_code(graph: fx.Graph) -> str:
    """A graph's Python source without torch.fx's bookkeeping."""
    lines = graph.python_code("self").src.strip().splitlines()
    kept = [line.split(";")[0].rstrip() for line in lines if not line.startswith("torch.fx.")]
    source = "\n".join(line for line in kept if line.strip()).replace("def forward(", "def segment(", 1)
    return source.replace(f"{__name__.replace('.', '_')}_", "")
