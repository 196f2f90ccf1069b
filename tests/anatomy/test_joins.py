"""Concatenation is given as a reason only where it is what makes the output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.models import Residual


class Dense(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.more = nn.Linear(width, 4)
        self.mix = nn.Linear(width + 4, width + 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.cat([x, self.more(x)], dim=-1)).relu()


class Pooled(nn.Module):
    """As MViT pools between two stages: the class token is put aside meanwhile; the skip is pooled too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat([x[:, :1], x[:, 1:].unflatten(1, (-1, 2)).mean(2)], dim=1)
        return pooled + self.linear(pooled)


@pytest.mark.parametrize(("last", "reason"), [(Dense, "concatenation"), (Pooled, "shape-changes")])
def test_a_block_is_refused_for_what_makes_its_output(last: type[nn.Module], reason: str) -> None:
    network = nn.Sequential(Residual(), Residual(), last(8))
    anatomy = rs.inspect(network, torch.randn(2, 5, 8))
    assert [len(chain.segments) for chain in anatomy.chains] == [2]
    assert {skipped.path: str(skipped.reason) for skipped in anatomy.skipped} == {"2": reason}
