"""`CoefficientCallback` in Lightning's Trainer: steps are the optimizer's, and a resume needs the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import revsurgeon as rs
from tests.composition.agreement import stack

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PATH = {"start": (0.9, 0.1), "end": (0.5, 0.5)}


# Lightning is imported where it is used: that takes seconds, and these tests are slow ones.


def module() -> Any:
    import lightning

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, _ = stack("exact")
            self.seen: list[float] = []

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            self.seen.append(rs.chains(self)[0].beta)
            return self.network(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Training()


def trainer(callbacks: list[Any], **options: Any) -> Any:
    import lightning

    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "enable_checkpointing": False, "max_epochs": 1}
    return lightning.Trainer(**{**settings, **options}, callbacks=callbacks)


def callback() -> Any:
    from revsurgeon.integrations.lightning import CoefficientCallback

    return CoefficientCallback(schedule=PATH)


def batches(count: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(2 * count, 5, 8)), batch_size=2)


def test_coefficients_move_once_an_optimizer_step_and_are_logged() -> None:
    model = module()
    run = trainer([callback()], accumulate_grad_batches=2)
    run.fit(model, batches(8))
    assert model.seen == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])
    assert rs.get_coefficients(model) == PATH["end"]
    assert float(run.callback_metrics["beta"]) == 0.5
    assert float(run.callback_metrics["alpha"]) == 0.5


def test_a_training_without_an_end_is_refused() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            while True:
                yield (torch.randn(5, 8),)

    with pytest.raises(rs.UsageError, match="how many steps"):
        trainer([callback()], max_epochs=-1).fit(module(), DataLoader(Endless(), batch_size=2))


def test_a_checkpoint_that_knows_nothing_of_the_coefficients_is_refused(tmp_path: Path) -> None:
    run = trainer([])
    run.fit(module(), batches(2))
    run.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(rs.UsageError, match="says nothing of the coefficients"):
        trainer([callback()], max_epochs=2).fit(module(), batches(2), ckpt_path=tmp_path / "a.ckpt")
