"""Blocks that add in place: rewired where nobody reads what they wrote over, refused where somebody does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.gradients import assert_identical, step


class InPlace(nn.Module):
    """Adds in place to a view of its input, or to the input itself; behind a branch that does not keep it."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.branch, self.view = nn.Linear(8, 8), view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.view:
            x = x.transpose(1, 2)
        x += self.branch(x.clone()).tanh()
        return x.transpose(1, 2) if self.view else x


class Network(nn.Module):
    def __init__(self, *, tap: bool, view: bool = True) -> None:
        super().__init__()
        self.stem, self.tap = nn.Linear(8, 8), tap
        self.blocks = nn.ModuleList(InPlace(view) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        x, taps = self.stem(x), []
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        return (x.sin(), taps[0].cos()) if self.tap else x.sin()


def test_what_is_written_over_and_read_by_nobody_is_rewired() -> None:
    torch.manual_seed(0)
    network, x = Network(tap=False), torch.randn(4, 8, 8)
    rs.rewire(network, example_inputs=x, arithmetic="exact")
    assert_identical(step(network, (x,)), step(network, (x,), inside=rs.stored_activations(network)))


def test_what_is_written_over_and_read_again_is_refused_by_its_blocks_names() -> None:
    """The tap is taken behind the first block and read behind the last, which wrote over it."""
    torch.manual_seed(0)
    network, x = Network(tap=True), torch.randn(4, 8, 8)
    expected = network(x)
    with pytest.raises(rs.UnsupportedModelError, match="write over their input") as refused:
        rs.rewire(network, example_inputs=x)
    assert "blocks.1" in str(refused.value.where)
    assert not rs.chains(network)
    assert all(map(torch.equal, network(x), expected))


def test_a_block_that_returns_the_tensor_it_was_given_is_left_alone_and_says_why() -> None:
    torch.manual_seed(0)
    found = rs.inspect(Network(tap=False, view=False), torch.randn(4, 8, 8))
    assert not found.chains
    assert {left.reason.value for left in found.skipped if "blocks" in left.path} == {"changes-arguments"}
