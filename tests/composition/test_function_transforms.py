"""torch.func and forward-mode differentiation: right, or refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import func, nn

import revsurgeon as rs
from tests.composition.agreement import both_arithmetics, stack

both_kinds = pytest.mark.parametrize("stored", [False, True], ids=["reversible", "stored"])


def forward_mode(network: nn.Module, x: torch.Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(network(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


REFUSED: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "grad": lambda network, x: func.grad(lambda y: network(y).sum())(x),
    "vjp": lambda network, x: func.vjp(network, x),
    "jacrev": lambda network, x: func.jacrev(network)(x),
    "hessian": lambda network, x: func.hessian(lambda y: network(y).sum())(x),
    "vmap": lambda network, x: torch.vmap(network)(x),
    "vmap of grad": lambda network, x: torch.vmap(func.grad(lambda y: network(y).sum()))(x),
    "linearize": lambda network, x: func.linearize(network, x),
}
FORWARD_MODE: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "jvp": lambda network, x: func.jvp(network, (x,), (torch.ones_like(x),)),
    "jacfwd": lambda network, x: func.jacfwd(network)(x),
    "dual numbers": forward_mode,
}


def within(network: nn.Module, stored: bool) -> contextlib.AbstractContextManager[Any]:
    return rs.stored_activations(network) if stored else contextlib.nullcontext()


@both_arithmetics
@both_kinds
@pytest.mark.parametrize("name", REFUSED)
def test_transforms_of_torch_func_are_refused_by_name(arithmetic: str, stored: bool, name: str) -> None:
    network, inputs = stack(arithmetic, training=False)
    refused = pytest.raises(rs.RevsurgeonError, match="does not go through a reversible chain")
    with refused, within(network, stored):
        REFUSED[name](network, inputs[0])


@both_arithmetics
@both_kinds
@pytest.mark.parametrize("name", FORWARD_MODE)
@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "without gradients"])
def test_forward_mode_is_refused_also_where_it_would_give_zero(
    arithmetic: str, stored: bool, name: str, gradients: bool
) -> None:
    network, inputs = stack(arithmetic, training=False)
    refused = pytest.raises(rs.RevsurgeonError, match=r"forward-mode differentiation \(jvp\) does not go")
    with refused, within(network, stored), torch.set_grad_enabled(gradients):
        FORWARD_MODE[name](network, inputs[0])


@both_arithmetics
def test_vmap_without_gradients_computes_what_a_loop_does(arithmetic: str) -> None:
    network, inputs = stack(arithmetic, training=False)
    x = torch.stack([inputs[0], 2 * inputs[0]])
    with torch.no_grad():
        expected = torch.stack([network(part) for part in x])
        torch.testing.assert_close(torch.vmap(network)(x), expected, rtol=1e-5, atol=1e-5)


@both_arithmetics
def test_an_ensemble_under_vmap_without_gradients(arithmetic: str) -> None:
    network, inputs = stack(arithmetic, training=False)
    parts = [{n: factor * p.detach() for n, p in network.named_parameters()} for factor in (1.0, 0.5)]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def run(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return func.functional_call(network, parameters, inputs)

    with torch.no_grad():
        expected = torch.stack([run(part) for part in parts])
        torch.testing.assert_close(torch.vmap(run)(stacked), expected, rtol=1e-5, atol=1e-5)


def test_a_network_at_beta_zero_takes_every_transform() -> None:
    network, inputs = stack("float", training=False)
    rs.set_coefficients(network, 1.0, 0.0)
    x = inputs[0]
    expected = torch.autograd.grad(network(x.requires_grad_()).sum(), x)[0]
    x = x.detach()
    torch.testing.assert_close(REFUSED["grad"](network, x), expected)
    for name, tangents in (("jvp", FORWARD_MODE["jvp"](network, x)[1]), ("dual", forward_mode(network, x))):
        torch.testing.assert_close(tangents.sum(), expected.sum(), msg=name)
