"""The training script of timm: in the place of its loss scaler, an object that moves the coefficients too."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from timm.utils import dispatch_clip_grad

from revsurgeon.reversible.schedule import CoefficientSchedule


class LossScaler(Protocol):
    """What timm's `NativeScaler` is."""

    state_dict_key: str

    def __call__(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer, **options: Any) -> None:
        """Backward and, if ``need_update``, the optimizer's step."""

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""


class CoefficientScaler:
    """Does what timm's loss scaler does, and steps the coefficient schedule with the optimizer.

    timm's ``train.py`` hands its ``loss_scaler`` to the training loop, which calls it for backward and step,
    to `timm.utils.CheckpointSaver` and to `timm.models.resume_checkpoint`. So this one line behind the place
    where the loss scaler is made is all that it takes, and the schedule's state is in timm's checkpoints::

        loss_scaler = CoefficientScaler(CoefficientSchedule.from_manifest(model, total_steps), loss_scaler)

    Args:
        schedule: of the network itself, not of the wrapper for distributed training.
        scaler: timm's own, for float16; None steps without scaling.
    """

    state_dict_key = "coefficients"

    def __init__(self, schedule: CoefficientSchedule, scaler: LossScaler | None = None) -> None:
        self.schedule = schedule
        self.scaler = scaler

    def __call__(
        self,
        loss: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        clip_grad: float | None = None,
        clip_mode: str = "norm",
        parameters: Any = None,
        create_graph: bool = False,
        need_update: bool = True,
    ) -> None:
        """Backward and, if `need_update`, the optimizer's step and the schedule's."""
        if self.scaler is not None:
            self.scaler(
                loss,
                optimizer,
                clip_grad=clip_grad,
                clip_mode=clip_mode,
                parameters=parameters,
                create_graph=create_graph,
                need_update=need_update,
            )
        else:
            loss.backward(create_graph=create_graph)
            if need_update:
                if clip_grad is not None:
                    dispatch_clip_grad(parameters, clip_grad, mode=clip_mode)
                optimizer.step()
        if need_update:
            self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state, and the scaler's own if there is one."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {"schedule": self.schedule.state_dict(), "scaler": scaler}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.schedule.load_state_dict(state_dict["schedule"])
        if self.scaler is not None and state_dict["scaler"] is not None:
            self.scaler.load_state_dict(state_dict["scaler"])
