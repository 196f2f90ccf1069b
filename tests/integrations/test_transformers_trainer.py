"""`CoefficientCallback` in transformers' Trainer: the schedule moves, is logged, saved and resumed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import revsurgeon as rs
from revsurgeon.integrations.transformers import CoefficientCallback
from tests.composition.agreement import rewired

STEPS = 4
PATH = {"start": (0.9, 0.1), "end": (0.5, 0.5)}

pytestmark = pytest.mark.filterwarnings("ignore")


def trainer(directory: Path, **options: Any) -> tuple[Trainer, nn.Module]:
    network, inputs = rewired("transformers bert", "exact")
    data = [
        {name: value[number % 2] for name, value in inputs.items()} | {"labels": torch.tensor(number % 2)}
        for number in range(12)
    ]
    given: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_steps": 2,
        "restore_callback_states_from_checkpoint": True,
    }
    arguments = TrainingArguments(output_dir=str(directory), **(given | options))
    callback = CoefficientCallback(schedule=PATH)
    return Trainer(model=network, args=arguments, train_dataset=data, callbacks=[callback]), network


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_coefficients_move_with_the_optimizer_are_logged_and_end_where_the_schedule_ends(
    tmp_path: Path,
) -> None:
    training, network = trainer(tmp_path)
    training.train()
    logged = [(entry["alpha"], entry["beta"]) for entry in training.state.log_history if "loss" in entry]
    wanted = [(0.9 - 0.4 * step / STEPS, 0.1 + 0.4 * step / STEPS) for step in range(1, STEPS + 1)]
    assert logged == [pytest.approx(point) for point in wanted]
    assert rs.get_coefficients(network) == pytest.approx(PATH["end"])


def test_reversible_and_stored_training_end_at_the_same_weights(tmp_path: Path) -> None:
    ends = []
    for stored in (False, True):
        training, network = trainer(tmp_path / str(stored), save_strategy="no")
        start = weights(network)
        with rs.stored_activations(network) if stored else contextlib.nullcontext():
            training.train()
        ends.append(weights(network))
        assert not same(ends[-1], start)
    assert same(*ends)


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    training, network = trainer(tmp_path / "whole")
    training.train()
    again, resumed = trainer(tmp_path / "whole")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert rs.get_coefficients(resumed) == rs.get_coefficients(network)
    assert same(weights(resumed), weights(network))


def test_resuming_without_the_callbacks_state_is_refused(tmp_path: Path) -> None:
    training, _ = trainer(tmp_path)
    training.train()
    again, _ = trainer(tmp_path, restore_callback_states_from_checkpoint=False)
    with pytest.raises(rs.UsageError, match="begin anew"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_artifact_of_a_checkpoint_loads_as_the_network_was_then(tmp_path: Path) -> None:
    training, network = trainer(tmp_path)
    training.train()
    for directory, point in (("checkpoint-2", (0.7, 0.3)), (".", PATH["end"])):
        found = rs.load(tmp_path / directory / "revsurgeon", into=type(network)(network.config))
        assert rs.get_coefficients(found) == pytest.approx(point)
    assert same(weights(found), weights(network))
