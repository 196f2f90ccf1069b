"""The optimizer's loop, for pretraining and for finetuning alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.05
LARGEST_NORM = 1.0


class DivergedError(Exception):
    """The loss or a gradient is not a number any more."""


def train(
    network: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    after_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train with AdamW, a one-cycle learning rate and gradients cut to a norm of 1.

    Args:
        network: in place; parameters without requires_grad stay.
        loss_of_step: the loss for a step's number.
        steps: how many.
        learning_rate: its peak.
        after_step: called behind every step (a schedule of coefficients).

    Returns:
        The losses.

    Raises:
        DivergedError: a loss or a gradient was not finite.
    """
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(steps, 2), pct_start=0.1
    )
    losses = []
    for step in range(steps):
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or not math.isfinite(float(norm)):
            raise DivergedError(
                f"step {step + 1} of {steps}: loss {losses[-1]:.3g}, gradient {float(norm):.3g}"
            )
        optimizer.step()
        rate.step()
        after_step()
    return losses
