"""torch.jit.trace, torch.export and torch.fx of a rewired network: for inference, after one forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.composition.agreement import both_arithmetics, rewired, stack

both_networks = pytest.mark.parametrize("name", ["residual stack", "timm vit"])
at_beta = pytest.mark.parametrize("plain", [False, True], ids=["beta above 0", "beta 0"])


def for_inference(name: str, arithmetic: str, plain: bool) -> tuple[nn.Module, torch.Tensor]:
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


TRACERS: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "jit": torch.jit.trace,
    "export": lambda network, x: torch.export.export(network, (x,), strict=False),
}


@both_arithmetics
@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*")
def test_a_trace_before_any_forward_is_refused(arithmetic: str, tracer: str) -> None:
    network, x = for_inference("residual stack", arithmetic, plain=False)
    with torch.no_grad(), pytest.raises(rs.UnsupportedModelError, match="Run the network once"):
        TRACERS[tracer](network, x)


@both_arithmetics
@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*")
def test_a_trace_with_gradients_is_refused(arithmetic: str, tracer: str) -> None:
    network, x = for_inference("residual stack", arithmetic, plain=False)
    network(x)
    with pytest.raises(rs.RevsurgeonError, match="tracing with gradients"):
        TRACERS[tracer](network, x)


@both_arithmetics
def test_torch_fx_is_refused_by_name(arithmetic: str) -> None:
    network, _ = for_inference("residual stack", arithmetic, plain=False)
    with pytest.raises(rs.UnsupportedModelError, match=r"torch\.fx cannot follow a rewired network"):
        torch.fx.symbolic_trace(network)


@both_arithmetics
def test_a_strict_export_is_refused(arithmetic: str) -> None:
    network, x = for_inference("residual stack", arithmetic, plain=False)
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.Unsupported, match="RewiredForward"):
        torch.export.export(network, (x,), strict=True)
