"""Networks that the tests of verification convert as `python:` sources: small, with all that can go wrong."""

from __future__ import annotations

import torch
from torch import nn

from tests.models import Inputs


class Mixed(nn.Module):
    """A block of two residual modules: dropout and a LayerScale in the one, a batch norm in the other."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.7))
        self.dropout = nn.Dropout(0.1)
        self.bn = nn.BatchNorm1d(width)
        self.mix = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.gamma * self.linear(self.norm(x)))
        return x + self.mix(torch.relu(self.bn(x.transpose(1, 2)).transpose(1, 2)))


class Tower(nn.Module):
    """Two chains, of two blocks and of one, with a change of width between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.early = nn.ModuleList(Mixed(8) for _ in range(2))
        self.wider = nn.Linear(8, 12)
        self.late = nn.ModuleList([Mixed(12)])
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.early:
            x = block(x)
        x = self.wider(x)
        for block in self.late:
            x = block(x)
        return self.head(x)


def tower() -> tuple[nn.Module, Inputs]:
    return Tower(), (torch.randn(2, 5, 8),)


class Wide(nn.Module):
    """A block of 16 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(512, 4096)
        self.second = nn.Linear(4096, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


def deep(blocks: int = 24) -> tuple[nn.Module, Inputs]:
    return nn.Sequential(*(Wide() for _ in range(blocks))), (torch.randn(2, 4, 512),)


def half_as_deep() -> tuple[nn.Module, Inputs]:
    return deep(12)
