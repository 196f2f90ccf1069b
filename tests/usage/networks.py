"""Small networks for random programs, rewired: what autograd sees of them differs."""

from __future__ import annotations

import functools

import torch
from torch import nn

import revsurgeon as rs
from tests.models import NETWORKS, Residual, Stack, seeded

SHAPE = (3, 5, 8)


class Skipping(nn.Module):
    """The stream is read again behind the chain."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(dropout=0.2) for _ in range(6))
        self.head = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place, block in enumerate(self.blocks):
            x = block(x)
            if place == 2:
                skipped = x
        return self.head(torch.cat([x, skipped], -1))


class TwoBranches(nn.Module):
    """Two residual modules, the first one with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(5, 5, 3, padding=1)
        self.norm = nn.BatchNorm1d(5)
        self.linear = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.norm(self.convolution(x)).relu()
        return x + self.dropout(self.linear(x))


class Twice(nn.Module):
    """Every block is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(dropout=0.2) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in [*self.blocks, *self.blocks]:
            x = block(x)
        return x


MAKES = {
    "stack": lambda: Stack(*(Residual(dropout=0.2) for _ in range(5))),
    "skipping": Skipping,
    "two branches": lambda: Stack(*(TwoBranches() for _ in range(5))),
    "twice": Twice,
    "timm vit": lambda: NETWORKS["timm vit"]()[0],
    "timm resnet": lambda: NETWORKS["timm resnet"]()[0],
}
SMALL = ("stack", "skipping", "two branches", "twice")


def shape_of(name: str) -> torch.Size:
    """Of the input."""
    if name in SMALL:
        return torch.Size(SHAPE)
    _, inputs = NETWORKS[name]()
    assert isinstance(inputs, tuple)
    return inputs[0].shape


@functools.cache
def rewired(name: str, arithmetic: str) -> nn.Module:
    """A network in exact arithmetic, or in float64 and float arithmetic; not to be changed."""
    network, _ = seeded(lambda: (MAKES[name](), ()))
    dtype = torch.float32 if arithmetic == "exact" else torch.float64
    example = torch.randn(shape_of(name), dtype=dtype)
    rs.rewire(network.to(dtype), example_inputs=example, arithmetic=arithmetic)
    rs.set_coefficients(network, 0.7, 0.3)
    return network.train()
