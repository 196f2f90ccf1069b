"""A rewired network in memory is verified where it is, and left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.models import residual_stack, seeded


def state(network: nn.Module) -> dict[str, Any]:
    """Everything that a verification might have changed."""
    chains = rs.chains(network)
    return {
        "weights": {n: (t.clone(), t._version) for n, t in network.state_dict().items()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in network.named_parameters()},
        "modes": [m.training for m in network.modules()],
        "chains": [(c.alpha, c.beta, c.arithmetic, c.merge, c.stored, c.state) for c in chains],
        "attributes": [sorted(vars(c)) for c in chains],
        "random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "autograd": torch.is_grad_enabled(),
    }


def test_nothing_is_left_behind(network: nn.Module) -> None:
    network.train()
    network(torch.randn(2, 5, 8)).sum().backward()
    rs.CoefficientSchedule.from_manifest(network, total_steps=4).step()
    before = state(network)
    report = rs.verify(network, torch.randn(2, 5, 8, generator=torch.Generator()), seeds=1)
    assert report.passed, report
    after = state(network)
    weights, old = after.pop("weights"), before.pop("weights")
    assert all(torch.equal(weights[name][0], old[name][0]) for name in old)
    gradients, held = after.pop("gradients"), before.pop("gradients")
    assert all(torch.equal(gradients[name], held[name]) for name in held)
    assert torch.equal(after.pop("random"), before.pop("random"))
    assert after == before


def test_files_are_not_looked_for(network: nn.Module) -> None:
    report = rs.verify(network, torch.randn(2, 5, 8), only=["integrity", "provenance"])
    assert {check.verdict for check in report.checks} == {"skipped"}
    assert all("memory" in str(check.reason) for check in report.checks)
    assert not report.passed


def test_a_loaded_network_knows_its_inputs_and_another_has_to_be_told(demo: Path, network: nn.Module) -> None:
    assert rs.verify(rs.load(demo), only=["equations"]).passed
    with pytest.raises(rs.UsageError, match="nothing says what Tower takes"):
        rs.verify(network)
    with pytest.raises(rs.UnsupportedModelError, match="was not rewired"):
        rs.verify(nn.Linear(2, 2), torch.zeros(2, 2))
    with pytest.raises(rs.UsageError, match="where and as it is"):
        rs.verify(network, torch.randn(2, 5, 8), dtype="bfloat16")


def test_an_artifact_without_a_build_is_verified_into_a_network_of_ones_own(tmp_path: Path) -> None:
    network, inputs = seeded(residual_stack)
    path = rs.save(rs.rewire(network, example_inputs=inputs, arithmetic="exact"), tmp_path / "mine")
    with pytest.raises(rs.ArtifactError, match="does not say how to build"):
        rs.verify(path)
    other, _ = residual_stack()
    report = rs.verify(path, inputs, into=other, only=["integrity", "provenance", "equivalence"])
    assert [check.verdict for check in report.checks] == ["passed", "skipped", "passed"]


def test_frozen_parameters_and_dictionaries_of_inputs_are_fine(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("late"))
    report = rs.verify(network, {"x": torch.randn(2, 5, 8)}, seeds=1)
    verdicts = {check.name: check.verdict for check in report.checks}
    assert "failed" not in verdicts.values(), report
    assert verdicts["reversibility"] == verdicts["gradients"] == verdicts["training"] == "passed"


def test_compiled_segments_are_verified_as_they_were_and_stay_compiled(network: nn.Module) -> None:
    rs.compile_segments(network, backend="eager")
    options = [chain.compile_options for chain in rs.chains(network)]
    assert rs.verify(network, torch.randn(2, 5, 8), only=["equivalence", "equations"], seeds=1).passed
    assert [chain.compile_options for chain in rs.chains(network)] == options


def test_the_first_check_of_a_report_can_be_asked_for_by_its_name(network: nn.Module) -> None:
    report = rs.verify(network, torch.randn(2, 5, 8), only=["equations"])
    assert report.check("equations").verdict == "passed"
    with pytest.raises(KeyError):
        report.check("integrity")
    assert report.to_dict()["checks"][0]["name"] == "equations"


def test_no_unknown_check_is_run(network: nn.Module) -> None:
    with pytest.raises(rs.UsageError, match="no check 'everything'"):
        rs.verify(network, torch.randn(2, 5, 8), only=["everything"])
