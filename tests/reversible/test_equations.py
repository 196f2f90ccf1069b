"""The rewired network against the paper's equations, written out once more in plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.models import Residual, Stack, seeded


def by_the_equations(network: Stack, x: torch.Tensor, alpha: float, beta: float, merge: str) -> torch.Tensor:
    """Dr2Net, equations 3 to 6, with y_0 = beta * x_0."""
    x = network.stem(x)
    y = beta * x
    for block in network.blocks:
        x, y = block.linear(block.norm(x)) + alpha * x + y, beta * x
    return network.head((x + y) / (1 + beta) if merge == "normalized" else x)


@pytest.mark.parametrize("merge", ["normalized", "last"])
@pytest.mark.parametrize(
    ("alpha", "beta"), [(1.0, 0.1), (0.9, 0.1), (0.3, 0.7), (0.0, 1.0), (1.0, 1.0), (0.8, 0.3), (0.0, 0.5)]
)
def test_outputs_and_gradients_are_those_of_the_equations(alpha: float, beta: float, merge: str) -> None:
    network, inputs = seeded(lambda: (Stack(*(Residual() for _ in range(3))), (torch.randn(3, 5, 8),)))
    network = network.double()
    wanted = [inputs[0].double().requires_grad_(), *network.parameters()]
    expected = by_the_equations(network, wanted[0], alpha, beta, merge)
    expected_gradients = torch.autograd.grad(expected.square().sum(), wanted)

    rs.rewire(network, example_inputs=wanted[0].detach(), arithmetic="float")
    rs.set_coefficients(network, alpha, beta)
    rs.chains(network)[0].merge = merge
    for inside in (torch.enable_grad(), rs.stored_activations(network)):
        with inside:
            output = network(wanted[0])
            gradients = torch.autograd.grad(output.square().sum(), wanted)
        # Three inverse steps lose at most three factors of 1 / beta of the precision of float64.
        bound = 1e3 * torch.finfo(torch.float64).eps / beta**3
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
        for gradient, wanted_gradient in zip(gradients, expected_gradients, strict=True):
            assert float((gradient - wanted_gradient).norm()) <= bound * float(wanted_gradient.norm())


def test_exact_arithmetic_is_the_same_network_up_to_the_grid() -> None:
    network, inputs = seeded(lambda: (Stack(*(Residual() for _ in range(3))), (torch.randn(3, 5, 8),)))
    network = network.double()
    wanted = [inputs[0].double().requires_grad_(), *network.parameters()]
    rs.rewire(network, example_inputs=wanted[0].detach(), arithmetic="exact")
    beta = rs.chains(network)[0].beta = 0.125  # a multiple of 2**-16
    expected = by_the_equations(network_of(network), wanted[0], 0.875, beta, "normalized")
    expected_gradients = torch.autograd.grad(expected.square().sum(), wanted)
    rs.set_coefficients(network, 0.875, beta)
    rs.chains(network)[0].merge = "normalized"
    output = network(wanted[0])
    gradients = torch.autograd.grad(output.square().sum(), wanted)
    # A value on the grid is off by half a grid point; a hundred cover what three blocks make of it.
    grid = 100 * 2.0 ** -rs.chains(network)[0].grid_bits
    torch.testing.assert_close(output, expected, rtol=0, atol=grid)
    for gradient, wanted_gradient in zip(gradients, expected_gradients, strict=True):
        assert float((gradient - wanted_gradient).norm()) <= grid * float(wanted_gradient.norm())


def network_of(network: nn.Module) -> Stack:
    """The same network; its layers, called one by one, are not rewired."""
    assert isinstance(network, Stack)
    return network
