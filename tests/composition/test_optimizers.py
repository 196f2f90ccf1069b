"""Optimizers over several steps: the weights go the way of the stored network's."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.composition.agreement import both_arithmetics, float_bound, loss_of, rewired_from, stack
from tests.gradients import relative_error
from tests.models import residual_stack

Optimizers = dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
    "foreach AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def weights_after(
    network: nn.Module, train: Callable[[nn.Module], None], stored: bool
) -> dict[str, torch.Tensor]:
    """The weights of a copy of the network that was trained, from the same random state at every call."""
    network = copy.deepcopy(network)
    torch.manual_seed(0)
    with rs.stored_activations(network) if stored else contextlib.nullcontext():
        train(network)
    return {n: p.detach() for n, p in network.named_parameters()}


def assert_same_way(
    network: nn.Module, train: Callable[[nn.Module], None], arithmetic: str, steps: int
) -> None:
    start = {n: p.detach() for n, p in network.named_parameters()}
    found, expected = (weights_after(network, train, stored) for stored in (False, True))
    assert not any(torch.equal(expected[n], start[n]) for n in start)
    if arithmetic == "exact":
        assert [n for n in expected if not torch.equal(found[n], expected[n])] == []
    else:
        # Each step's gradients are within the bound, and a step's error may double in the next one.
        assert relative_error(found, expected) <= 2**steps * float_bound(network)


@both_arithmetics
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_the_steps_of_the_stored_network(arithmetic: str, name: str) -> None:
    network, inputs = stack(arithmetic, dropout=0.0)

    def train(network: nn.Module) -> None:
        optimizer = OPTIMIZERS[name](network.parameters())

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(network, inputs)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)

    assert_same_way(network, train, arithmetic, steps=3 if name != "LBFGS" else 9)


@both_arithmetics
def test_clipped_and_accumulated_gradients_with_moving_coefficients(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)

    def train(network: nn.Module) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for number in range(3):
            for factor in (1.0, 2.0):
                (loss_of(network, (factor * inputs[0],)) / 2).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            alpha, beta = rs.get_coefficients(network)
            rs.set_coefficients(network, alpha - 0.01 * number, beta + 0.01 * number)

    assert_same_way(network, train, arithmetic, steps=3)


@both_arithmetics
@pytest.mark.parametrize("shared", [False, True], ids=["weights of their own", "shared weights"])
def test_an_optimizer_that_steps_during_backward(arithmetic: str, shared: bool) -> None:
    def make() -> nn.Module:
        network, _ = residual_stack(4, 0.2)
        if shared:
            network.blocks[3].linear.weight = network.blocks[1].linear.weight
        return network

    network, inputs = rewired_from(make, arithmetic)

    def train(network: nn.Module) -> None:
        optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in network.parameters()}

        def step(parameter: torch.Tensor) -> None:
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        for _ in range(3):
            loss_of(network, inputs).backward()

    assert_same_way(network, train, arithmetic, steps=3)


@both_arithmetics
def test_a_second_backward_after_a_step_during_the_first_is_refused(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    weight = network.blocks[1].linear.weight
    weight.register_post_accumulate_grad_hook(lambda p: torch.optim.SGD([p], lr=0.1).step())
    loss = loss_of(network, inputs)
    loss.backward(retain_graph=True)
    with pytest.raises(rs.ChainBrokenError, match="changed in place between forward and backward"):
        loss.backward()
