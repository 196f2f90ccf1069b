"""Distances between outputs, also of networks that find more or less than before."""

from __future__ import annotations

import pytest
import torch

from revsurgeon.rewiring.measure import distance


def test_the_distance_is_relative_to_what_is_expected() -> None:
    expected = [torch.tensor([3.0, 4.0]), torch.tensor([7])]
    assert distance(expected, expected) == 0.0
    assert distance([torch.tensor([3.0, 3.0]), torch.tensor([9])], expected) == pytest.approx(1 / 5)


def test_tensors_of_two_shapes_have_nothing_in_common() -> None:
    boxes, other = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0], [0.0, 12.0]])
    # Neither cancels any of the other: sqrt((5² + 13²) / 5²).
    assert distance([other], [boxes]) == pytest.approx((194 / 25) ** 0.5)
    assert distance([boxes[:0]], [boxes]) == pytest.approx(1.0)
