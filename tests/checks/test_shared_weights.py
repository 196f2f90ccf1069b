"""Weights that two chains and the head share: their gradients are sums of three, in another order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import revsurgeon as rs
from revsurgeon.checks import thresholds
from revsurgeon.checks.shared import shared_uses
from tests.gradients import relative_error, step
from tests.models import Residual, Stack

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))


class Shares(nn.Module):
    """Two stacks of blocks with a pooling between them, and one more use of their layer behind."""

    def __init__(self, uses_behind: int) -> None:
        super().__init__()
        self.first, self.second, self.uses_behind = (
            Stack(Residual(), Residual()),
            nn.Sequential(),
            uses_behind,
        )
        self.second.extend([Residual(), Residual()])
        self.shared = self.first.blocks[0].linear = self.second[1].linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.first.blocks:
            x = block(x)
        x = x.flip(1) * 0.5
        for block in self.second:
            x = block(x)
        for _ in range(self.uses_behind):
            x = self.shared(x).tanh()
        return x


@pytest.mark.parametrize(("uses_behind", "uses"), [(0, 0), (1, 3), (2, 4)])
def test_uses_are_counted_where_a_chain_does_not_have_them_all(uses_behind: int, uses: int) -> None:
    torch.manual_seed(0)
    network = rs.rewire(Shares(uses_behind), example_inputs=X, recipe="dr2-hold", arithmetic="exact")
    assert len(rs.chains(network)) == 2
    network(X)
    assert shared_uses(network, ((X,), {})) == uses


def test_a_module_that_one_chain_uses_at_every_block_keeps_its_order() -> None:
    torch.manual_seed(0)
    stack = Stack(*(Residual() for _ in range(4)))
    for block in stack.blocks:
        block.linear = stack.blocks[0].linear
    network = rs.rewire(stack, example_inputs=X, recipe="dr2-hold", arithmetic="exact")
    assert shared_uses(network, ((X,), {})) == 0
    reversible, stored = step(network, (X,)), step(network, (X,), inside=rs.stored_activations(network))
    assert all(torch.equal(g, stored.gradients[n]) for n, g in reversible.gradients.items())


def test_gradients_in_another_order_pass_and_stay_within_the_bound() -> None:
    torch.manual_seed(0)
    network = rs.rewire(Shares(1), example_inputs=X, recipe="dr2-hold", arithmetic="exact")
    reversible, stored = step(network, (X,)), step(network, (X,), inside=rs.stored_activations(network))
    error = relative_error(reversible.gradients, stored.gradients)
    assert error <= thresholds.reordered(3, torch.float32)
    report = rs.verify(network, X, only=["gradients", "training"], seeds=1)
    assert report.passed, report
