"""What a block's own code keeps is never lost by rewiring: the block is left alone, or nothing needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.gradients import assert_identical, step
from tests.models import Stack

X = torch.randn(3, 5, 8)


class Keeps(nn.Module):
    """A block that does something with a value on the way to its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.f = nn.LayerNorm(8), nn.Linear(8, 8)
        self.losses: list[torch.Tensor] = []
        self.seen: dict[Any, Any] = {"calls": 0, "parts": [{}]}
        self.length = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.f(self.norm(x))
        self.keep(f)
        return x + f

    def keep(self, f: torch.Tensor) -> None:
        """Do it."""


class InAttribute(Keeps):
    def keep(self, f: torch.Tensor) -> None:
        self.loss = f.square().mean()


class InList(Keeps):
    def keep(self, f: torch.Tensor) -> None:
        self.losses.append(f.square().mean())


class InDictionary(Keeps):
    def keep(self, f: torch.Tensor) -> None:
        self.seen["loss"] = f.square().mean()


class Nested(Keeps):
    def keep(self, f: torch.Tensor) -> None:
        self.seen["parts"][0]["loss"] = f.square().mean()


class Submodule(Keeps):
    """The keeping code is in a module inside the block, which is followed."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[torch.Tensor] = []

        def forward(self, f: torch.Tensor) -> torch.Tensor:
            self.losses.append(f.square().mean())
            return f

    def __init__(self) -> None:
        super().__init__()
        self.inner = Submodule.Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + self.f(self.norm(x)))


class Counts(Keeps):
    def keep(self, f: torch.Tensor) -> None:
        self.length += 1


class CountsInside(Keeps):
    def keep(self, f: torch.Tensor) -> None:
        self.seen["calls"] += 1


class NotesSize(Keeps):
    def keep(self, f: torch.Tensor) -> None:
        self.length = f.shape[1]


class Mask(Keeps):
    """Caches what is made of sizes alone; the graph makes it again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] not in self.seen:
            self.seen[x.shape[1]] = torch.arange(x.shape[1], dtype=x.dtype).view(-1, 1)
        return x + self.f(self.norm(x)) * self.seen[x.shape[1]]


@pytest.mark.parametrize(
    "block",
    [
        InAttribute,
        InList,
        InDictionary,
        Nested,
        Submodule,
        Counts,
        CountsInside,
        NotesSize,
    ],
)
def test_a_block_that_keeps_or_counts_something_is_left_as_it_was(block: Callable[[], Keeps]) -> None:
    network = Stack(*(block() for _ in range(3)))
    anatomy = rs.inspect(network, X)
    assert [(s.path, s.reason) for s in anatomy.skipped if s.path.count(".") == 1] == [
        (f"blocks.{i}", "side-effect") for i in range(3)
    ]
    with pytest.raises(rs.UnsupportedModelError, match="side-effect"):
        rs.rewire(network, example_inputs=X)
    for module in network.blocks:
        assert isinstance(module, Keeps)
        assert (module.losses, module.seen, module.length) == ([], {"calls": 0, "parts": [{}]}, 0)


def test_a_block_that_caches_what_is_made_of_sizes_is_rewired() -> None:
    torch.manual_seed(0)
    network = Stack(*(Mask() for _ in range(3)))
    rs.rewire(network, example_inputs=X, recipe="dr2-hold", arithmetic="exact")
    for x in (X, X[:, :4]):  # another length, as the cache would have another entry
        assert_identical(step(network, (x,)), step(network, (x,), inside=rs.stored_activations(network)))


class Collects(nn.Module):
    def __init__(self, container: str) -> None:
        super().__init__()
        self.norm, self.f, self.container = nn.LayerNorm(8), nn.Linear(8, 8), container

    def forward(self, x: torch.Tensor, losses: Any) -> torch.Tensor:
        f = self.f(self.norm(x))
        if self.container == "list":
            losses.append(f.square().mean())
        else:
            losses[len(losses)] = f.square().mean()
        return x + f


class Collector(nn.Module):
    def __init__(self, container: str) -> None:
        super().__init__()
        self.blocks, self.container = nn.ModuleList(Collects(container) for _ in range(3)), container

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        losses: Any = [x.mean()] if self.container == "list" else {0: x.mean()}
        for block in self.blocks:
            x = block(x, losses)
        return x.mean() + sum(losses.values() if isinstance(losses, dict) else losses)


@pytest.mark.parametrize("container", ["list", "dictionary"])
def test_a_block_that_collects_in_an_argument_is_left_alone(container: str) -> None:
    network = Collector(container)
    with pytest.raises(rs.UnsupportedModelError, match="changes a list or a dictionary that it is handed"):
        rs.rewire(network, example_inputs=X)
