"""One step of training, the same for what is simulated and for what is measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from revsurgeon.errors import UsageError
from revsurgeon.rewiring.measure import Arguments, tensors_of

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepOptions:
    """How a step is taken.

    Attributes:
        amp: "none", "bf16" or "fp16": dtype of autocast.
        accumulate: forward and backward passes before the optimizer's step.
    """

    amp: str = "none"
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.amp not in AMP:
            raise UsageError(f"amp {self.amp!r} is not known.", hint="Known: " + ", ".join(AMP))
        if self.accumulate < 1:
            raise UsageError(f"accumulate = {self.accumulate}: at least one pass comes before a step.")

    def autocast(self, device: str) -> AbstractContextManager[Any]:
        """The context that forwards run in."""
        dtype = AMP[self.amp]
        return nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


def training_step(
    network: nn.Module,
    arguments: Arguments,
    optimizer: torch.optim.Optimizer | None,
    options: StepOptions,
    *,
    device: str = "cpu",
    enter: Callable[[str], None] = lambda phase: None,
) -> None:
    """Forward, backward and the optimizer's step; gradients are let go of at the end.

    The loss is the sum of the outputs' squares, which keeps nothing but the outputs. A task's own head and
    loss are not part of it.

    Args:
        network: in training mode.
        arguments: of its forward.
        optimizer: None leaves its step out, and the gradients in place.
        options: how.
        device: type of device that it runs on.
        enter: called with "forward", "kept" (the forward is through), "backward" and "optimizer".
    """
    for _ in range(options.accumulate):
        enter("forward")
        with options.autocast(device):
            value = loss(network(*arguments[0], **arguments[1]))
        enter("kept")
        enter("backward")
        value.backward()
        del value
    if optimizer is not None:
        enter("optimizer")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def loss(output: Any) -> torch.Tensor:
    """The sum of squares of everything in an output that has a gradient."""
    found = [tensor for tensor in tensors_of(output) if tensor.grad_fn is not None]
    if not found:
        raise UsageError("nothing that the network returns depends on a parameter that is trained.")
    total: torch.Tensor = sum((leaf.float().square().sum() for leaf in found), start=torch.zeros(()))
    return total
