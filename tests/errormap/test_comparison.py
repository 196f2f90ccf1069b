"""The measures of a comparison, against torch's own on all elements at once."""

from __future__ import annotations

import sys

import pytest
import torch

from revsurgeon.errormap.comparison import Comparison, Sums


def compared(gradients: list[torch.Tensor], references: list[torch.Tensor]) -> Comparison:
    total = Sums()
    for gradient, reference in zip(gradients, references, strict=True):
        total += Sums.of(gradient, reference)
    return total.comparison()


def test_measures_of_several_tensors_are_those_of_all_their_elements_together() -> None:
    torch.manual_seed(0)
    references = [torch.randn(5, 7), torch.randn(3), torch.randn(())]
    gradients = [r + 0.1 * torch.randn(r.shape) for r in references]
    g, r = (torch.cat([t.reshape(-1) for t in ts]).double() for ts in (gradients, references))
    found = compared(gradients, references)
    assert found.relative == pytest.approx(float((g - r).norm() / r.norm()), rel=1e-12)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(g, r, dim=0)), rel=1e-12)
    assert found.max_abs == pytest.approx(float((g - r).abs().max()), rel=1e-12)
    assert found.mean_abs == pytest.approx(float((g - r).abs().mean()), rel=1e-12)
    assert found.mse == pytest.approx(float((g - r).square().mean()), rel=1e-12)


def test_equal_gradients_have_no_error_at_all() -> None:
    gradients = [torch.randn(9, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)]
    assert compared(gradients, gradients) == Comparison(0.0, 1.0, 0.0, 0.0, 0.0)


def test_the_last_bit_of_one_element_is_an_error() -> None:
    reference = torch.ones(1000)
    gradient = reference.clone()
    gradient[7] = torch.nextafter(gradient[7], torch.tensor(2.0))
    assert compared([gradient], [reference]).relative > 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_overflowed_is_as_far_away_as_a_float_can_say(value: float) -> None:
    reference = torch.ones(4)
    for gradients in (
        [torch.tensor([value, 1, 1, 1]), reference],
        [reference, torch.tensor([1, 1, 1, value])],
    ):
        found = compared(gradients, [reference, reference])
        assert found.relative == found.max_abs == found.mean_abs == found.mse == sys.float_info.max
        assert found.cosine is None


def test_no_gradient_has_no_direction() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert compared([zero], [one]).cosine is None
    assert compared([zero], [zero]) == Comparison(0.0, None, 0.0, 0.0, 0.0)
    assert compared([one], [zero]).relative == pytest.approx(3**0.5)
    assert compared([-one], [one]).cosine == -1.0


def test_no_parameter_at_all_has_no_error() -> None:
    assert compared([], []).relative == 0.0
    assert compared([torch.zeros(0)], [torch.zeros(0)]).relative == 0.0
