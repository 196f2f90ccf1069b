"""torch.jit.trace, torch.export and torch.fx of a rewired network: for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.composition.agreement import both_arithmetics, rewired, rewired_from, stack

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
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*")
def test_a_trace_by_jit_before_any_forward_is_refused(arithmetic: str) -> None:
    network, x = for_inference("residual stack", arithmetic, plain=False)
    with torch.no_grad(), pytest.raises(rs.UnsupportedModelError, match="Run the network once"):
        torch.jit.trace(network, x)


@both_arithmetics
@both_networks
@at_beta
def test_an_export_before_any_forward_computes_the_same(arithmetic: str, name: str, plain: bool) -> None:
    network, x = for_inference(name, arithmetic, plain)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        exported = torch.export.export(network, (x,), dynamic_shapes=({0: batch},), strict=False).module()
        for other in (x, x[:1], torch.cat([x, 2 * x])):
            assert torch.equal(exported(other), network(other))


@both_arithmetics
def test_a_block_that_decides_by_sizes_is_exported_for_these_sizes_only(arithmetic: str) -> None:
    class Even(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.linear(x) * (2 if x.shape[0] % 2 else 1)

    network, inputs = rewired_from(lambda: nn.Sequential(Even(), Even(), Even()), arithmetic)
    x = inputs[0]
    network.eval()
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        network(x)
        with pytest.raises(torch._dynamo.exc.UserError, match="specialized it to be a constant"):
            torch.export.export(network, (x,), dynamic_shapes=({0: batch},), strict=False)
        exported = torch.export.export(network, (x,), strict=False).module()
        assert torch.equal(exported(2 * x), network(2 * x))


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
