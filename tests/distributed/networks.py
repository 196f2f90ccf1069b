"""The networks that run on two processes, and the one process that these must agree with."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import nn

import revsurgeon as rs
from tests.models import Residual, Stack, seeded, timm_vit

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class Tapped(Stack):
    """A stack that also returns what is between its second and its third block."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        for block in self.blocks[:2]:
            x = block(x)
        tap = x
        for block in self.blocks[2:]:
            x = block(x)
        return self.head(x), tap


class Staged(nn.Module):
    """One chain through two containers, and what is between these."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 8)
        self.first, self.second = (nn.Sequential(Residual(), Residual()) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tap = self.first(self.stem(x))
        return self.head(self.second(tap)), tap


class Repeated(nn.Module):
    """One block that is called four times, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(8, 8), Residual(dropout=0.1), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(4):
            x = self.block(x)
        return self.head(x)


def _four(dropout: float) -> list[Residual]:
    return [Residual(dropout=dropout) for _ in range(4)]


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stack": (lambda: Stack(*_four(dropout=0.1)), (5, 8)),
    "stack without dropout": (lambda: Stack(*_four(dropout=0.0)), (5, 8)),
    "tapped": (lambda: Tapped(*_four(dropout=0.1)), (5, 8)),
    "staged": (Staged, (5, 8)),
    "repeated": (Repeated, (5, 8)),
    "vit": (lambda: timm_vit()[0], (3, 32, 32)),
}
"""How a network is made, and the shape of one sample."""

FLOAT, EXACT = ("re2", "float"), ("dr2", "exact")
"""Mode and arithmetic: float where it keeps the gradients (beta = 1), exact where it would not."""


@functools.cache
def _rewired(kind: str, mode: str, arithmetic: str) -> nn.Module:
    network = seeded(lambda: (KINDS[kind][0](), ()))[0]
    return rs.rewire(network, mode, example_inputs=batch(kind), arithmetic=arithmetic).train()


def network(kind: str = "stack", way: tuple[str, str] = EXACT) -> nn.Module:
    """A rewired network in training mode, the same at every call."""
    return copy.deepcopy(_rewired(kind, *way))


def batch(kind: str = "stack") -> torch.Tensor:
    """Four samples: two for each process."""
    return torch.randn(4, *KINDS[kind][1], generator=torch.Generator().manual_seed(0))


def share(rank: int, kind: str = "stack") -> torch.Tensor:
    """The half of the batch that is a process's own."""
    return batch(kind).chunk(2)[rank]


def mean_square(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """A loss over all outputs; that of a batch is the mean of those of its halves."""
    output = network(inputs)
    outputs = output if isinstance(output, tuple) else (output,)
    return torch.stack([o.float().square().mean() for o in outputs]).sum()


def tap_only(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """A loss that reads nothing but the tap."""
    return network(inputs)[1].square().mean()


def backward(
    network: nn.Module, inputs: torch.Tensor, rank: int, *, loss: Loss = mean_square, parts: int = 1
) -> None:
    """Add a process's gradients to those of the network, with random numbers of its own."""
    torch.manual_seed(rank)
    for part in inputs.chunk(parts):
        (loss(network, part) / parts).backward()


def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    """All gradients by name, gathered where they are sharded."""
    return {name: whole(p.grad) for name, p in network.named_parameters() if p.grad is not None}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, gathered if it is sharded (by all processes at once)."""
    gather = getattr(tensor, "full_tensor", None)
    return (tensor if gather is None else gather()).detach().clone()


def mean_of_halves(
    network: nn.Module, inputs: torch.Tensor, *, loss: Loss = mean_square, parts: int = 1
) -> dict[str, torch.Tensor]:
    """The gradients that two processes with half of the batch each must find, to the last bit.

    They are (g_0 + g_1) / 2 in whatever order the processes add and halve: addition of two numbers commutes,
    and halving is exact.
    """
    halves = []
    for rank, half in enumerate(inputs.chunk(2)):
        network.zero_grad()
        backward(network, half, rank, loss=loss, parts=parts)
        halves.append(gradients(network))
    network.zero_grad()
    return {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}


def different(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that one side lacks, or that differ in any bit."""
    both = actual.keys() & expected.keys()
    names = sorted(actual.keys() | expected.keys())
    return [n for n in names if n not in both or not torch.equal(actual[n], expected[n])]
