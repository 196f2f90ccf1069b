"""Plain weights are the network's own, under its names, and the unrewired class loads them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import revsurgeon as rs
from tests.composition.agreement import rewired, stack
from tests.export.test_programs import outputs
from tests.models import residual_stack, seeded


def test_the_unrewired_class_loads_the_weights_and_computes_what_the_network_does_at_1_0(
    tmp_path: Path,
) -> None:
    network, inputs = stack("exact")
    made = rs.export(network, "weights", output=tmp_path / "plain.safetensors", example_inputs=inputs)
    plain, _ = seeded(residual_stack)
    for parameter in plain.parameters():
        torch.nn.init.zeros_(parameter)
    plain.load_state_dict(load_file(made.path))
    moved = outputs(network, (inputs, {}))[0]
    rs.set_coefficients(network, 1.0, 0.0)
    assert torch.equal(outputs(plain, (inputs, {}))[0], outputs(network, (inputs, {}))[0])
    apart = (outputs(plain, (inputs, {}))[0] - moved).double().norm() / moved.double().norm()
    # Both are computed in float64 from the same tensors; only the order of the sums differs.
    assert abs(made.drift - float(apart)) <= 1e-12 * float(apart)
    assert made.drift > 0


@pytest.mark.slow
def test_transformers_loads_the_weights_beside_the_config(tmp_path: Path) -> None:
    from transformers import VideoMAEForVideoClassification

    network, inputs = rewired("transformers videomae", "exact")
    rs.export(network, "weights", output=tmp_path / "model.safetensors", example_inputs=inputs)
    network.config.save_pretrained(tmp_path)
    plain, report = VideoMAEForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plain.state_dict().items())


def test_at_1_0_nothing_drifts(tmp_path: Path) -> None:
    network, inputs = stack("exact")
    rs.set_coefficients(network, 1.0, 0.0)
    made = rs.export(network, "weights", output=tmp_path / "plain.safetensors", example_inputs=inputs)
    assert made.drift == 0


def test_tensors_that_share_memory_are_written_under_each_name(tmp_path: Path) -> None:
    network, inputs = stack("exact")
    network.head.weight = network.stem.weight
    expected = copy.deepcopy(network.state_dict())
    made = rs.export(network, "weights", output=tmp_path / "plain.safetensors", example_inputs=inputs)
    found = load_file(made.path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
