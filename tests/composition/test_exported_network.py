"""torch.jit.trace and torch.export of a rewired network: for inference, after one forward."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

import revsurgeon as rs
from tests.composition.agreement import both_arithmetics, rewired, stack

both_networks = pytest.mark.parametrize("name", ["residual stack", "timm vit"])
at_beta = pytest.mark.parametrize("plain", [False, True], ids=["beta above 0", "beta 0"])


def for_inference(name: str, arithmetic: str, plain: bool) -> tuple[torch.nn.Module, torch.Tensor]:
    in_evaluation = {"training": False}
    network, inputs = (
        stack(arithmetic, **in_evaluation)
        if name == "residual stack"
        else rewired(name, arithmetic, **in_evaluation)
    )
    if plain:
        rs.set_coefficients(network, 1.0, 0.0)
    return network, inputs[0]


@both_arithmetics
@both_networks
@at_beta
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*")
def test_a_network_traced_by_jit_after_one_forward_computes_the_same(
    arithmetic: str, name: str, plain: bool
) -> None:
    network, x = for_inference(name, arithmetic, plain)
    with torch.no_grad():
        network(x)
        traced = torch.jit.trace(network, x)
        for other in (x, 2 * x, x[:1]):
            assert torch.equal(traced(other), network(other))


@both_arithmetics
@both_networks
@at_beta
def test_a_network_exported_after_one_forward_computes_the_same(
    arithmetic: str, name: str, plain: bool
) -> None:
    network, x = for_inference(name, arithmetic, plain)
    with torch.no_grad():
        network(x)
        exported = torch.export.export(network, (x,), strict=False).module()
        for other in (x, 2 * x):
            assert torch.equal(exported(other), network(other))


@both_arithmetics
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*")
def test_a_trace_before_any_forward_is_refused(arithmetic: str) -> None:
    network, x = for_inference("residual stack", arithmetic, plain=False)
    with torch.no_grad(), pytest.raises(DataDependentOutputException):
        torch.jit.trace(network, x)


@both_arithmetics
def test_a_strict_export_is_refused(arithmetic: str) -> None:
    network, x = for_inference("residual stack", arithmetic, plain=False)
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.Unsupported, match="RewiredForward"):
        torch.export.export(network, (x,), strict=True)
