"""Weights that are computed: parametrizations, pruning, and vectors of parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.nn.utils import parametrizations, parametrize

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

PARAMETRIZATIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
OLD: dict[str, Callable[[nn.Module], nn.Module]] = {
    "hook weight_norm": torch.nn.utils.weight_norm,
    "hook spectral_norm": torch.nn.utils.spectral_norm,
}
every_parametrization = pytest.mark.parametrize("name", PARAMETRIZATIONS)


@both_arithmetics
@pytest.mark.parametrize("name", [*PARAMETRIZATIONS, *OLD])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_parametrized_layers_get_the_stored_gradients_and_move_their_buffers_once(
    arithmetic: str, name: str, training: bool
) -> None:
    network, inputs = stack(arithmetic)
    loss_of(network, inputs).backward()  # the first step is an ordinary one
    torch.manual_seed(0)
    for block in network.blocks[:2]:
        {**PARAMETRIZATIONS, **OLD}[name](block.linear)
    network.train(training)
    state = copy.deepcopy(network.state_dict())
    after: list[dict[str, torch.Tensor]] = []

    def run() -> None:
        network.load_state_dict(state)
        for _ in range(2):  # spectral_norm's vectors are other ones in the second step
            loss_of(network, inputs).backward()
        after.append({n: b.clone() for n, b in network.named_buffers()})

    assert_agree(network, run, arithmetic)
    assert all(torch.equal(after[0][n], after[1][n]) for n in after[0])


@both_arithmetics
@every_parametrization
def test_weights_that_are_cached_for_the_forward_are_computed_anew_for_backward(
    arithmetic: str, name: str
) -> None:
    network, inputs = stack(arithmetic)
    PARAMETRIZATIONS[name](network.blocks[1].linear)
    network.eval()

    def run() -> None:
        with parametrize.cached():
            loss = loss_of(network, inputs)
        loss.backward()

    assert_agree(network, run, arithmetic)


@both_arithmetics
@every_parametrization
def test_backward_among_cached_weights_is_refused(arithmetic: str, name: str) -> None:
    network, inputs = stack(arithmetic)
    PARAMETRIZATIONS[name](network.blocks[1].linear)
    with pytest.raises(rs.RevsurgeonError, match="from inside a segment"), parametrize.cached():
        loss_of(network, inputs).backward()


class Scaled(Residual):
    """Its branch is scaled by a parameter of the block itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.linear(self.norm(x))


class Positive(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


@both_arithmetics
@pytest.mark.parametrize("used", [False, True], ids=["before the first step", "after the first step"])
def test_a_parametrized_parameter_of_the_block_itself_gets_the_stored_gradient(
    arithmetic: str, used: bool
) -> None:
    network, inputs = rewired_from(lambda: Stack(*(Scaled() for _ in range(3))), arithmetic)
    if used:
        loss_of(network, inputs).backward()
    for block in network.blocks:
        parametrize.register_parametrization(block, "scale", Positive())
    found = assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    assert found["blocks.0.parametrizations.scale.original"] is not None


@both_arithmetics
@pytest.mark.parametrize("removed", [False, True], ids=["masked", "made permanent"])
def test_pruned_layers_get_the_stored_gradients(arithmetic: str, removed: bool) -> None:
    network, inputs = stack(arithmetic)
    loss_of(network, inputs).backward()
    for block in network.blocks[1:]:
        torch.nn.utils.prune.l1_unstructured(block.linear, "weight", amount=0.4)
        if removed:
            torch.nn.utils.prune.remove(block.linear, "weight")
    found = assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    if not removed:
        masked = found["blocks.1.linear.weight_orig"][network.blocks[1].linear.weight_mask == 0]
        assert masked.numel() > 0
        assert bool((masked == 0).all())


@both_arithmetics
def test_parameters_set_from_a_vector_are_the_ones_used(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    before = gradients_of(network, lambda: loss_of(network, inputs).backward())
    vector = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    torch.nn.utils.vector_to_parameters(1.5 * vector, network.parameters())
    after = assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    assert not any(torch.equal(after[n], before[n]) for n in before)
    torch.nn.utils.vector_to_parameters(vector, network.parameters())
    again = gradients_of(network, lambda: loss_of(network, inputs).backward())
    assert all(torch.equal(again[n], before[n]) for n in before)
