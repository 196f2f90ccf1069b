"""The training loop of transformers, unchanged."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

import revsurgeon as rs
from tests.composition.agreement import both_arithmetics, float_bound, rewired
from tests.gradients import relative_error


@both_arithmetics
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_takes_the_steps_of_the_stored_network(
    arithmetic: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"max_steps": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    quiet = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    found = []
    for stored in (False, True):
        network, inputs = rewired("transformers bert", arithmetic)
        data = [
            {name: value[number % 2] for name, value in inputs.items()} | {"labels": torch.tensor(number % 2)}
            for number in range(12)
        ]
        arguments = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=2, **options, **quiet
        )
        start = {n: p.detach().clone() for n, p in network.named_parameters()}
        with rs.stored_activations(network) if stored else contextlib.nullcontext():
            Trainer(model=network, args=arguments, train_dataset=data).train()
        found.append({n: p.detach() for n, p in network.named_parameters()})
        assert not torch.equal(found[-1]["classifier.weight"], start["classifier.weight"])
    if arithmetic == "exact":
        assert [n for n in start if not torch.equal(found[0][n], found[1][n])] == []
    else:
        assert relative_error(found[0], found[1]) <= 2**3 * float_bound(network)
