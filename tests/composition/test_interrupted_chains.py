"""What comes between the blocks of a chain, or between the lines of one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.composition.agreement import (
    assert_agree,
    both_arithmetics,
    gradients_of,
    loss_of,
    rewired_from,
    stack,
)
from tests.models import Residual, Stack


class Detaching(Stack):
    """The gradient stops between two blocks, as where only the last blocks are finetuned."""

    leaf = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            if number == 2:
                x = x.detach()
                self.between = x.requires_grad_(self.leaf)
            x = block(x)
        return self.head(x)


@both_arithmetics
@pytest.mark.parametrize("leaf", [False, True], ids=["a constant", "a leaf of its own"])
def test_a_stream_that_is_detached_between_two_blocks_passes_no_gradient_on(
    arithmetic: str, leaf: bool
) -> None:
    network, inputs = rewired_from(lambda: Detaching(*(Residual(dropout=0.2) for _ in range(4))), arithmetic)
    network.leaf = leaf
    found = assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    assert {n for n, g in found.items() if g is None} == {
        n for n in found if n.startswith(("stem", "blocks.0", "blocks.1"))
    }
    assert (network.between.grad is not None) == leaf


@both_arithmetics
@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "without gradients"])
def test_a_second_forward_inside_of_a_first_one_is_refused(arithmetic: str, gradients: bool) -> None:
    network, inputs = stack(arithmetic)
    expected = gradients_of(network, lambda: loss_of(network, inputs).backward())
    inside: list[torch.Tensor] = []

    def again(module: nn.Module, args: object, output: torch.Tensor) -> None:
        if not inside:
            inside.append(output)
            with torch.set_grad_enabled(gradients):
                network(2 * inputs[0])

    handle = network.blocks[1].register_forward_hook(again)
    with pytest.raises(rs.ChainBrokenError, match="a second forward before the first one is through"):
        network(*inputs)
    handle.remove()
    found = gradients_of(network, lambda: loss_of(network, inputs).backward())
    assert all(torch.equal(found[n], expected[n]) for n in expected)


@both_arithmetics
def test_two_inputs_that_take_turns_through_the_blocks_are_refused(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    start, other_start = network.stem(inputs[0]), network.stem(2 * inputs[0])
    first = network.blocks[0](start)
    network.blocks[0](other_start)
    with pytest.raises(rs.ChainBrokenError, match="a second forward before the first one is through"):
        network.blocks[1](first)


@both_arithmetics
def test_an_empty_batch(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    empty = inputs[0][:0]
    found = gradients_of(network, lambda: network(empty).sum().backward())
    stored = gradients_of(network, lambda: network(empty).sum().backward(), stored=True)
    assert all(torch.equal(found[n], stored[n]) for n in stored)


class WithoutGradient(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = self.norm(x)
        return x + self.linear(y)


class InFullPrecision(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            y = self.linear(self.norm(x.float()))
        return x + y


class InferenceInside(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(False):
            y = self.linear(self.norm(x))
        return x + y.clone()


@pytest.mark.parametrize("block", [WithoutGradient, InFullPrecision, InferenceInside])
def test_a_block_with_a_region_in_another_mode_is_refused_with_the_reason(block: type[Residual]) -> None:
    # A segment's graph has no place for such a region: gradients would flow that the source stops, and
    # autocast would reach what the source computes in full precision.
    with pytest.raises(rs.UnsupportedModelError, match="another mode of its own"):
        rs.rewire(Stack(*(block() for _ in range(3))), example_inputs=torch.randn(3, 5, 8))


class Inner(nn.Module):
    """A submodule may do what it likes: it is called, not cut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            mean = self.norm(x)
        with torch.autocast("cpu", enabled=False):
            return self.linear(x.float() + mean)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


@both_arithmetics
def test_a_region_in_another_mode_inside_a_submodule_of_a_block_works(arithmetic: str) -> None:
    network, inputs = rewired_from(lambda: Stack(*(Outer() for _ in range(3))), arithmetic)
    found = assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    assert found["blocks.0.inner.norm.weight"] is None

    def under_autocast() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss_of(network, inputs).backward()

    assert_agree(network, under_autocast, arithmetic, eps=torch.finfo(torch.bfloat16).eps / 100)
