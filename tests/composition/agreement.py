"""Gradients are those of stored activations: to the bit in exact arithmetic, up to rounding in float."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.gradients import call, relative_error
from tests.models import NETWORKS, Inputs, residual_stack, seeded

Gradients = dict[str, torch.Tensor | None]

both_arithmetics = pytest.mark.parametrize("arithmetic", ["float", "exact"])

# (alpha, beta): where float reversal is precise; where it is not, and exact arithmetic has to work.
COEFFICIENTS = {"float": (0.1, 0.9), "exact": (0.9, 0.1)}


def rewired(name: str, arithmetic: str, training: bool = True) -> tuple[nn.Module, Any]:
    """A network of `tests.models.NETWORKS` rewired for one arithmetic, and its inputs."""
    return _copy(_template(NETWORKS[name]), arithmetic, training)


def stack(
    arithmetic: str, depth: int = 4, dropout: float = 0.2, training: bool = True
) -> tuple[nn.Module, Any]:
    """Residual blocks between two layers, rewired for one arithmetic, and inputs of shape (3, 5, 8)."""
    return _copy(_stack_template(depth, dropout), arithmetic, training)


def rewired_from(
    make: Callable[[], nn.Module], arithmetic: str, *inputs: torch.Tensor
) -> tuple[nn.Module, Any]:
    """A network rewired for one arithmetic, and its inputs: of shape (3, 5, 8) if none are given."""
    return _copy(_template(lambda: (make(), inputs or (torch.randn(3, 5, 8),))), arithmetic, True)


@functools.cache
def _stack_template(depth: int, dropout: float) -> tuple[nn.Module, Any]:
    return _template(lambda: residual_stack(depth, dropout))


@functools.cache
def _template(make: Callable[[], tuple[nn.Module, Inputs]]) -> tuple[nn.Module, Any]:
    network, inputs = seeded(make)
    return rs.rewire(network, example_inputs=inputs, arithmetic="exact", recipe="dr2-hold"), inputs


def _copy(template: tuple[nn.Module, Any], arithmetic: str, training: bool) -> tuple[nn.Module, Any]:
    network, inputs = copy.deepcopy(template)
    for chain in rs.chains(network):
        chain.arithmetic = arithmetic
    rs.set_coefficients(network, *COEFFICIENTS[arithmetic])
    return network.train(training), inputs


def loss_of(network: nn.Module, inputs: Any) -> torch.Tensor:
    """A loss of the network's first output that is not linear in it."""
    return call(network, inputs).float().square().mean()


def gradients_of(
    network: nn.Module,
    run: Callable[[], Any],
    *,
    stored: bool = False,
    wanted: Mapping[str, torch.Tensor] | None = None,
) -> Gradients:
    """What `run` (forward and backward) leaves in ``.grad``, from the same random state at every call.

    Args:
        network: rewired.
        run: forward and backward.
        stored: with stored activations.
        wanted: the leaves by name; None takes the network's parameters.
    """
    leaves = dict(network.named_parameters()) if wanted is None else wanted
    for leaf in leaves.values():
        leaf.grad = None
    torch.manual_seed(0)
    with rs.stored_activations(network) if stored else contextlib.nullcontext():
        run()
    return {name: None if leaf.grad is None else leaf.grad.clone() for name, leaf in leaves.items()}


def assert_same(actual: Gradients, expected: Gradients, bound: float) -> None:
    """The same leaves have gradients, not all zero, equal to the bit where the bound is 0."""
    assert [n for n in actual if actual[n] is None] == [n for n in expected if expected[n] is None]
    found = {name: g for name, g in actual.items() if g is not None}
    wanted = {name: g for name, g in expected.items() if g is not None}
    assert any(bool(g.abs().max() > 0) for g in wanted.values())
    if bound == 0:
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    else:
        assert relative_error(found, wanted) <= bound


def assert_agree(
    network: nn.Module,
    run: Callable[[], Any],
    arithmetic: str,
    *,
    wanted: Mapping[str, torch.Tensor] | None = None,
    eps: float = torch.finfo(torch.float32).eps,
) -> Gradients:
    """The gradients that `run` leaves are the stored network's; returned are the stored ones.

    Args:
        network: rewired.
        run: forward and backward.
        arithmetic: of its chains.
        wanted: the leaves by name; None takes the network's parameters.
        eps: of the precision that branches compute in.
    """
    reversible = gradients_of(network, run, wanted=wanted)
    stored = gradients_of(network, run, stored=True, wanted=wanted)
    assert_same(reversible, stored, 0 if arithmetic == "exact" else float_bound(network, eps))
    return stored


def float_bound(network: nn.Module, eps: float = torch.finfo(torch.float32).eps) -> float:
    """How far float gradients may be from the stored ones, relative to them.

    Each inverse step divides by beta and adds one rounding of G, so what is rebuilt at the start of a chain
    of n segments is off by at most n * eps / beta**n; a branch passes it on with its own Lipschitz constant,
    for which 100 stands here.
    """
    chains = rs.chains(network)
    longest = max(sum(chain.segments) for chain in chains)
    return 100 * longest * eps / min(chain.beta for chain in chains) ** longest
