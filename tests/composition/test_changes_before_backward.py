"""What is changed between forward and backward: put back for the recomputation, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import revsurgeon as rs
from tests.composition.agreement import (
    assert_agree,
    both_arithmetics,
    gradients_of,
    loss_of,
    rewired,
    rewired_from,
    stack,
)
from tests.models import Stack


@both_arithmetics
@pytest.mark.parametrize("name", ["residual stack", "timm resnet", "transformers bert"])
def test_switching_to_evaluation_before_backward_changes_no_gradient(arithmetic: str, name: str) -> None:
    network, inputs = stack(arithmetic) if name == "residual stack" else rewired(name, arithmetic)
    state = copy.deepcopy(network.state_dict())

    def run() -> None:
        network.load_state_dict(state)
        loss = loss_of(network.train(), inputs)
        network.eval()
        loss.backward()
        assert not any(module.training for module in network.modules())

    assert_agree(network, run, arithmetic)


@both_arithmetics
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_functional_call_has_the_gradients_of_the_tensors_it_was_given(arithmetic: str, frozen: bool) -> None:
    network, inputs = stack(arithmetic)
    network.requires_grad_(not frozen)
    given = {n: (1.1 * p).detach().requires_grad_() for n, p in network.named_parameters()}
    own = {n: p.detach().clone() for n, p in network.named_parameters()}

    def run() -> None:
        functional_call(network, given, inputs).square().sum().backward()

    assert_agree(network, run, arithmetic, wanted=given)
    assert all(g.grad is not None for g in given.values())
    assert all(torch.equal(p, own[n]) and p.grad is None for n, p in network.named_parameters())


@both_arithmetics
def test_functional_call_with_computed_tensors_reaches_what_they_were_computed_from(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    network.requires_grad_(False)
    code = torch.ones(3, requires_grad=True)
    scale = nn.Linear(3, 1)

    def run() -> None:
        given = {n: p * scale(code) for n, p in network.named_parameters() if "blocks" in n}
        functional_call(network, given, inputs).square().sum().backward()

    assert_agree(network, run, arithmetic, wanted={"code": code, **dict(scale.named_parameters())})


@both_arithmetics
def test_functional_call_with_other_buffers_uses_these_in_the_recomputation(arithmetic: str) -> None:
    network, inputs = rewired("timm resnet", arithmetic, training=False)
    given = {n: b + 0.1 for n, b in network.named_buffers() if "running" in n}
    assert_agree(
        network, lambda: functional_call(network, given, inputs).square().mean().backward(), arithmetic
    )


@both_arithmetics
def test_a_buffer_changed_before_backward_is_refused(arithmetic: str) -> None:
    network, inputs = rewired("timm resnet", arithmetic, training=False)
    loss = loss_of(network, inputs)
    with torch.no_grad():
        network.train()(*inputs)  # moves the running statistics that the first forward used
    with pytest.raises(rs.ChainBrokenError, match="keeps was changed in place between forward and backward"):
        loss.backward()


class Scaling(nn.Module):
    """Multiplies by a tensor that it keeps somewhere."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.put(torch.linspace(0.5, 1.5, 8))

    def put(self, scale: torch.Tensor) -> None:
        if self.place == "attribute":
            self.scale = scale
        elif self.place == "buffer":
            self.register_buffer("scale", scale)
        elif self.place == "frozen parameter":
            self.scale = nn.Parameter(scale, requires_grad=False)
        elif self.place == "list":
            self.scales = [scale]
        elif self.place == "dictionary":
            self.kept = {"scale": scale}
        else:
            self.pair = (scale, 1)

    def get(self) -> torch.Tensor:
        if self.place == "list":
            return self.scales[0]
        if self.place == "dictionary":
            return self.kept["scale"]
        return self.pair[0] if self.place == "tuple" else self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.get()


class ScalingBlock(nn.Module):
    """A residual block that scales in a module of its own, or (place "inlined") in its own code."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        self.scaling = Scaling("attribute" if place == "inlined" else place)
        self.inlined = place == "inlined"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return x + self.linear(h * self.scaling.scale if self.inlined else self.scaling(h))


PLACES = ("attribute", "inlined", "buffer", "frozen parameter", "list", "dictionary", "tuple")


@both_arithmetics
@pytest.mark.parametrize("place", PLACES)
def test_what_a_module_keeps_is_what_it_was_in_the_recomputation(arithmetic: str, place: str) -> None:
    network, inputs = rewired_from(lambda: Stack(*(ScalingBlock(place) for _ in range(4))), arithmetic)
    scaling = network.blocks[1].scaling

    def run() -> None:
        before = scaling.get()
        loss = loss_of(network, inputs)
        scaling.put(3 * before)
        loss.backward()
        assert torch.equal(scaling.get(), 3 * before)
        scaling.put(before)

    assert_agree(network, run, arithmetic)


@both_arithmetics
@pytest.mark.parametrize("place", PLACES)
def test_what_a_module_keeps_and_changes_in_place_before_backward_is_refused(
    arithmetic: str, place: str
) -> None:
    network, inputs = rewired_from(lambda: Stack(*(ScalingBlock(place) for _ in range(4))), arithmetic)
    loss = loss_of(network, inputs)
    with torch.no_grad():
        network.blocks[1].scaling.get().mul_(3)
    with pytest.raises(rs.ChainBrokenError, match="changed in place between forward and backward"):
        loss.backward()


@both_arithmetics
def test_a_module_that_is_replaced_before_backward_is_refused(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    loss = loss_of(network, inputs)
    network.blocks[1].linear = nn.Linear(8, 8)
    with pytest.raises(rs.ChainBrokenError, match="a module was replaced between forward and backward"):
        loss.backward()


@both_arithmetics
def test_numbers_that_a_module_keeps_are_what_they_were_in_the_recomputation(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)

    def run() -> None:
        loss = loss_of(network, inputs)
        for block in network.blocks:
            block.norm.eps, block.dropout.p = 0.5, 0.9
        loss.backward()
        for block in network.blocks:
            assert (block.norm.eps, block.dropout.p) == (0.5, 0.9)
            block.norm.eps, block.dropout.p = 1e-5, 0.2

    assert_agree(network, run, arithmetic)


@both_arithmetics
def test_a_segment_that_draws_other_random_numbers_in_backward_is_refused(arithmetic: str) -> None:
    class Drawing(nn.Dropout):
        more = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.more:
                torch.rand(1)
            return super().forward(x)

    network, inputs = stack(arithmetic)
    for block in network.blocks:
        block.dropout = Drawing(0.5)
    expected = gradients_of(network, lambda: loss_of(network, inputs).backward())
    loss = loss_of(network, inputs)
    state = torch.get_rng_state()
    network.blocks[2].dropout.more = True  # as another thread that draws meanwhile would have it
    with pytest.raises(rs.ChainBrokenError, match="other random numbers"):
        loss.backward()
    assert torch.equal(torch.get_rng_state(), state)
    network.blocks[2].dropout.more = False
    again = gradients_of(network, lambda: loss_of(network, inputs).backward())
    assert all(torch.equal(again[n], expected[n]) for n in expected)
