"""Activation checkpointing: outside of a chain it composes, inside of one it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import revsurgeon as rs
from tests.composition.agreement import assert_agree, both_arithmetics, gradients_of, loss_of, rewired, stack
from tests.models import Residual, Stack

both_kinds = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


@both_arithmetics
@both_kinds
def test_stem_and_head_may_be_checkpointed(arithmetic: str, reentrant: bool) -> None:
    network, inputs = stack(arithmetic)
    x = inputs[0].requires_grad_()

    def run() -> None:
        y = checkpoint(network.stem, x, use_reentrant=reentrant)
        for block in network.blocks:
            y = block(y)
        checkpoint(network.head, y, use_reentrant=reentrant).square().mean().backward()

    wanted = {"x": x, **dict(network.named_parameters())}
    assert_agree(network, run, arithmetic, wanted=wanted)
    assert_same_without_checkpoint(network, run, x)


@both_arithmetics
@both_kinds
def test_the_whole_network_may_be_checkpointed(arithmetic: str, reentrant: bool) -> None:
    network, inputs = stack(arithmetic)
    x = inputs[0].requires_grad_()

    def run() -> None:
        checkpoint(network, x, use_reentrant=reentrant).square().mean().backward()

    assert_agree(network, run, arithmetic, wanted={"x": x, **dict(network.named_parameters())})
    assert_same_without_checkpoint(network, run, x)


def other_coefficients(network: nn.Module) -> None:
    rs.set_coefficients(network, 0.75, 0.26)  # of as many bits


def another_rate(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.6


@both_arithmetics
@pytest.mark.parametrize("change", [other_coefficients, another_rate, nn.Module.eval])
def test_a_checkpoint_that_does_not_repeat_the_chains_forward_is_refused(
    arithmetic: str, change: Callable[[nn.Module], object]
) -> None:
    network, inputs = stack(arithmetic)
    rs.set_coefficients(network, 0.7, 0.3)
    out = checkpoint(network, inputs[0].requires_grad_(), use_reentrant=False)
    change(network)
    reason = "gave other bits" if arithmetic == "exact" else "came back with other values"
    with pytest.raises(rs.ChainBrokenError, match=reason):
        out.square().sum().backward()


@both_arithmetics
def test_checkpoints_within_checkpoints_around_a_chain(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    x = inputs[0].requires_grad_()

    def inner(y: torch.Tensor) -> torch.Tensor:
        return checkpoint(network, y, use_reentrant=False)

    def run() -> None:
        checkpoint(inner, x, use_reentrant=False).square().mean().backward()

    assert_agree(network, run, arithmetic)
    assert_same_without_checkpoint(network, run, x)


def assert_same_without_checkpoint(network: nn.Module, run: object, x: torch.Tensor) -> None:
    found = gradients_of(network, run)
    expected = gradients_of(network, lambda: network(x).square().mean().backward())
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def run_with_a_part_checkpointed(
    network: nn.Module, x: torch.Tensor, group: tuple[int, ...], reentrant: bool
) -> None:
    """Forward and backward with the blocks of the group in one checkpoint."""

    def part(y: torch.Tensor) -> torch.Tensor:
        for number in group:
            y = network.blocks[number](y)
        return y

    y = network.stem(x)
    for number, block in enumerate(network.blocks):
        if number == group[0]:
            y = checkpoint(part, y, use_reentrant=reentrant)
        elif number not in group:
            y = block(y)
    network.head(y).square().mean().backward()


REENTRANT = [((0,), True), ((0, 1), True), ((1,), True), ((1, 2), True), ((3,), True), ((2, 3), True)]


@both_arithmetics
@pytest.mark.parametrize(("group", "reentrant"), [*REENTRANT, ((3,), False), ((2, 3), False)])
def test_a_checkpoint_of_a_part_of_a_chain_is_refused(
    arithmetic: str, group: tuple[int, ...], reentrant: bool
) -> None:
    network, inputs = stack(arithmetic)
    for stored in (False, True):
        with pytest.raises(rs.ChainBrokenError, match="checkpoint"):
            gradients_of(
                network,
                lambda: run_with_a_part_checkpointed(network, inputs[0], group, reentrant),
                stored=stored,
            )


@both_arithmetics
@pytest.mark.parametrize("group", [(0,), (0, 1)])
def test_a_checkpoint_of_the_first_blocks_that_is_not_reentrant_is_right(
    arithmetic: str, group: tuple[int, ...]
) -> None:
    network, inputs = stack(arithmetic)
    found = gradients_of(network, lambda: run_with_a_part_checkpointed(network, inputs[0], group, False))
    expected = gradients_of(network, lambda: network(*inputs).square().mean().backward())
    assert all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize("group", [(1,), (1, 2)])
def test_a_checkpoint_of_blocks_in_the_middle_is_right_in_float_and_raises_in_exact_arithmetic(
    group: tuple[int, ...],
) -> None:
    network, inputs = stack("float")
    found = gradients_of(network, lambda: run_with_a_part_checkpointed(network, inputs[0], group, False))
    expected = gradients_of(network, lambda: network(*inputs).square().mean().backward())
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    network, inputs = stack("exact")
    with pytest.raises(rs.ChainBrokenError, match="checkpoint"):
        run_with_a_part_checkpointed(network, inputs[0], group, False)


@both_arithmetics
def test_timms_switch_for_checkpointing_is_refused_and_can_be_turned_off(arithmetic: str) -> None:
    network, inputs = rewired("timm vit", arithmetic)
    network.set_grad_checkpointing(True)
    with pytest.raises(rs.ChainBrokenError, match="needs no checkpointing"):
        loss_of(network, inputs).backward()
    network.set_grad_checkpointing(False)
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
@both_kinds
def test_transformers_switch_for_checkpointing_is_refused_and_can_be_turned_off(
    arithmetic: str, reentrant: bool
) -> None:
    network, inputs = rewired("transformers vit", arithmetic)
    network.gradient_checkpointing_enable({"use_reentrant": reentrant})
    # Versions of transformers differ in whether it is inside of the block's code, or around it.
    with pytest.raises(rs.RevsurgeonError, match=r"turn that off|needs no checkpointing"):
        loss_of(network, inputs).backward()
    network.gradient_checkpointing_disable()
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


class Checkpointed(nn.Module):
    """A layer that checkpoints itself."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 8))
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.layer, x, use_reentrant=self.reentrant)


@both_arithmetics
def test_a_layer_inside_a_segment_may_checkpoint_itself(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    for block in network.blocks:
        block.linear = Checkpointed(reentrant=False)
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
def test_a_layer_inside_a_segment_that_checkpoints_itself_reentrantly_is_refused(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    for block in network.blocks:
        block.linear = Checkpointed(reentrant=True)
    with pytest.raises(RuntimeError, match=r"incompatible with .grad\(\)|use_reentrant"):
        loss_of(network, inputs).backward()


def test_a_block_that_checkpoints_itself_is_refused_with_the_reason() -> None:
    class Block(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + checkpoint(self.linear, self.norm(x), use_reentrant=False)

    with pytest.raises(rs.UnsupportedModelError, match="it checkpoints activations"):
        rs.rewire(Stack(Block(), Block()), example_inputs=torch.randn(3, 5, 8))
