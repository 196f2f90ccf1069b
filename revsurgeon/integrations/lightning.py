"""The training loop of Lightning: a callback for its `Trainer` that moves the coefficients."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from revsurgeon.errors import UsageError
from revsurgeon.reversible.coefficients import get_coefficients
from revsurgeon.reversible.schedule import CoefficientSchedule


class CoefficientCallback(Callback):
    """Steps the coefficient schedule with the optimizer, and logs alpha and beta.

    The schedule is the recipe's that the network was rewired with; how long it is, the trainer knows. Its
    state is in the trainer's checkpoints, so ``trainer.fit(..., ckpt_path=...)`` goes on where it was. The
    rewired network may be the LightningModule itself or anything inside it; `revsurgeon.save` writes it.

    Args:
        schedule: keyword arguments for `CoefficientSchedule` in place of the recipe's: start, end, ...

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=10, callbacks=[CoefficientCallback()])  # doctest: +SKIP
    """

    def __init__(self, *, schedule: dict[str, Any] | None = None) -> None:
        self.options = schedule
        self.schedule: CoefficientSchedule | None = None
        self._resumed: dict[str, Any] | None = None
        self._steps_seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the schedule; in a training that is resumed, at the step where it was."""
        steps = trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise UsageError(
                "the trainer does not know how many steps it will take, and the schedule needs that.",
                hint="Give Trainer(max_steps=...), or max_epochs and a data loader with a length.",
            )
        total = int(steps)
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else 1
        epoch = max(1, round(total / epochs))
        if self.options is None:
            self.schedule = CoefficientSchedule.from_manifest(pl_module, total, steps_per_epoch=epoch)
        else:
            self.schedule = CoefficientSchedule(pl_module, total, steps_per_epoch=epoch, **self.options)
        if self._resumed is not None:
            self.schedule.load_state_dict(self._resumed)
        elif trainer.global_step > 0:
            raise UsageError(
                f"the training goes on at step {trainer.global_step}, and its checkpoint says nothing of the "
                "coefficients.",
                hint="Resume from a checkpoint that was written with this callback.",
            )
        self._steps_seen = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count the batch, if the optimizer has made a step with it, and log the coefficients."""
        assert self.schedule is not None
        if trainer.global_step > self._steps_seen:  # not while gradients are only accumulated
            self._steps_seen = trainer.global_step
            self.schedule.step()
        alpha, beta = get_coefficients(pl_module)
        pl_module.log_dict({"alpha": alpha, "beta": beta})

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the trainer holds of this callback."""
        return {"schedule": None if self.schedule is None else self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take that from a checkpoint; the schedule gets it when the training starts."""
        self._resumed = state_dict["schedule"]
