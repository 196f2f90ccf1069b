"""What `arithmetic: auto` measures in little memory: the error of float reversal, leaving nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import revsurgeon as rs
from revsurgeon.artifact import read_manifest
from revsurgeon.rewiring.measure import distance, gradient_sketches
from tests.gradients import relative_error, step
from tests.models import seeded, timm_vit


def test_the_distance_of_sketches_is_that_of_the_gradients() -> None:
    network, inputs = seeded(timm_vit)
    network.eval()
    rs.rewire(network, example_inputs=inputs, arithmetic="exact")
    rs.set_coefficients(network, 0.9, 0.1)
    sketches, gradients = [], []
    for arithmetic in ("float", "exact"):
        for chain in rs.chains(network):
            chain.arithmetic = arithmetic
        sketches.append(gradient_sketches(network, (inputs, {})))
        gradients.append(step(network, inputs).gradients)
    estimated, real = distance(*sketches), relative_error(*gradients)
    # Another projection of the output, and 4096 buckets a parameter: the same magnitude is what decides.
    assert real / 3 < estimated < real * 3


def test_folding_keeps_lengths_and_equality() -> None:
    from revsurgeon.rewiring.measure import _folded

    generator = torch.Generator().manual_seed(0)
    for shape in ((3,), (4096,), (5000,), (700, 600)):
        gradient = torch.randn(shape, generator=generator)
        folded = _folded(gradient)
        # The variance of a squared length over 4096 buckets is at most 2 / 4096; three deviations are 7 %.
        assert abs(float(folded.norm() / gradient.norm()) - 1) < 0.07
        assert torch.equal(_folded(gradient.clone()), folded)
        assert not torch.equal(_folded(gradient + 1e-3), folded)


def test_measuring_leaves_the_networks_own_gradients_alone() -> None:
    network, inputs = seeded(timm_vit)
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = torch.full_like(parameter, number) if number % 2 else None
    before = [p.grad for p in network.parameters()]
    rs.rewire(network, example_inputs=inputs, arithmetic="auto")
    for number, (parameter, gradient) in enumerate(zip(network.parameters(), before, strict=True)):
        assert parameter.grad is gradient
        assert gradient is None or bool((gradient == number).all())


@pytest.mark.slow
def test_float_gradients_that_overflow_are_recorded_as_far_away_and_exact_is_taken(tmp_path: Path) -> None:
    """Forty divisions by .1 leave nothing that a float can hold."""
    source = "python:tests.conversion.factories:deep_stack"
    path = rs.convert(source, output=tmp_path / "out", arithmetic="auto")
    manifest = read_manifest(path)
    assert manifest.arithmetic == "exact"
    assert manifest.checks["self_check"]["float_gradient_error"] > 1
    assert distance([torch.tensor([torch.inf])], [torch.ones(1)]) == sys.float_info.max
    assert distance([torch.tensor([torch.nan])], [torch.ones(1)]) == sys.float_info.max
