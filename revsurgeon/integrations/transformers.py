"""The training loop of transformers: a callback for `Trainer` that moves the coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from revsurgeon.artifact import read_manifest, read_tensors
from revsurgeon.checkpoints import save
from revsurgeon.errors import UsageError
from revsurgeon.reversible.coefficients import get_coefficients
from revsurgeon.reversible.schedule import CoefficientSchedule
from revsurgeon.reversible.sharding import has_sharded_parts
from revsurgeon.rewiring.wrappers import unwrapped

ARTIFACT = "revsurgeon"
"""The directory of the artifact inside a checkpoint of the trainer."""


class CoefficientCallback(TrainerCallback, ExportableState):
    """Steps the coefficient schedule with the optimizer, logs alpha and beta, and saves the artifact.

    The schedule is the recipe's that the network was rewired with. Its state is in the trainer's checkpoints,
    so `resume_from_checkpoint=True` goes on where it was. (`TrainingArguments` must have
    ``restore_callback_states_from_checkpoint=True`` for that.) alpha and beta are in the trainer's history
    and reach every callback behind this one; for a reporter of the trainer's own to see them, put this one
    first: ``trainer.callback_handler.callbacks.insert(0, CoefficientCallback())``.

    Args:
        save_artifact: write an artifact, which `revsurgeon.load` takes, into each checkpoint and, at the end
            of the training, into ``output_dir``. A training that is resumed takes its weights from there.
        schedule: keyword arguments for `CoefficientSchedule` in place of the recipe's: start, end, ...

    Example:
        >>> from transformers import Trainer
        >>> trainer = Trainer(model=model, args=arguments, train_dataset=data,
        ...                   callbacks=[CoefficientCallback()])  # doctest: +SKIP
    """

    def __init__(self, *, save_artifact: bool = True, schedule: dict[str, Any] | None = None) -> None:
        self.save_artifact = save_artifact
        self.options = schedule
        self.schedule: CoefficientSchedule | None = None
        self.resumed: dict[str, Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the schedule; in a training that is resumed, at the step where it was."""
        network = unwrapped(kwargs["model"])
        epoch = max(1, round(state.max_steps / max(float(args.num_train_epochs), 1.0)))
        if self.options is None:
            self.schedule = CoefficientSchedule.from_manifest(network, state.max_steps, steps_per_epoch=epoch)
        else:
            self.schedule = CoefficientSchedule(
                network, state.max_steps, steps_per_epoch=epoch, **self.options
            )
        if self.resumed is not None:
            self.schedule.load_state_dict(self.resumed)
            _take_weights(network, Path(str(args.output_dir), f"checkpoint-{state.global_step}", ARTIFACT))
        if self.schedule.steps_done != state.global_step and self.resumed is None and state.global_step:
            raise UsageError(
                f"the training goes on at step {state.global_step}, and the coefficients would begin anew.",
                hint="Set TrainingArguments(restore_callback_states_from_checkpoint=True).",
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One optimizer step is done."""
        assert self.schedule is not None
        self.schedule.step()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add alpha and beta to what is logged, and to the history."""
        alpha, beta = get_coefficients(unwrapped(kwargs["model"]))
        for logs in (kwargs.get("logs"), *state.log_history[-1:]):
            if logs is not None:
                logs.update(alpha=alpha, beta=beta)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the artifact into the checkpoint that was just written."""
        self._save(Path(str(args.output_dir), f"checkpoint-{state.global_step}"), state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the artifact into the output directory."""
        self._save(Path(str(args.output_dir)), state, kwargs["model"])

    def _save(self, directory: Path, state: TrainerState, model: Any) -> None:
        if self.save_artifact and state.is_world_process_zero:
            directory.mkdir(parents=True, exist_ok=True)
            save(model, directory / ARTIFACT, force=True)

    def state(self) -> dict[str, Any]:
        """What a checkpoint of the trainer holds of this callback."""
        done = None if self.schedule is None else self.schedule.state_dict()
        return {
            "args": {"save_artifact": self.save_artifact, "schedule": self.options},
            "attributes": {"resumed": done},
        }


def _take_weights(network: nn.Module, artifact: Path) -> None:
    """Put the weights of a checkpoint's artifact, if it has one, into a training that goes on from there.

    The trainer has loaded its own file before. But that file holds the weights of some architectures
    (VideoMAE, ViT, Swin, Dinov2) under their old names, and the trainer of transformers 5.23 then does not
    find them: it warns, and goes on with the blocks as they were.
    """
    if artifact.is_dir() and not has_sharded_parts(network):
        network.load_state_dict(read_tensors(artifact, read_manifest(artifact)))
