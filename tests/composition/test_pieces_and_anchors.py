"""Chains whose segments run in pieces, or whose float streams are stored on the way, in other settings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import revsurgeon as rs
from tests.composition.agreement import (
    assert_agree,
    assert_same,
    both_arithmetics,
    float_bound,
    gradients_of,
    loss_of,
    rewired,
    stack,
)

OPTIONS = {"in pieces": {"chunks": 3}, "with anchors": {"anchors": 2}}
both_options = pytest.mark.parametrize("option", OPTIONS)


def with_option(network: nn.Module, option: str) -> nn.Module:
    for chain in rs.chains(network):
        for name, value in OPTIONS[option].items():
            setattr(chain, name, value)
    return network


@both_arithmetics
@both_options
def test_lora_in_a_chain_with_an_option(arithmetic: str, option: str) -> None:
    network, inputs = rewired("timm vit", arithmetic)
    loss_of(with_option(network, option), inputs).backward()
    config = LoraConfig(r=2, target_modules=["qkv", "fc1", "fc2"], lora_dropout=0.2, init_lora_weights=False)
    torch.manual_seed(1)
    network = get_peft_model(network, config)
    with torch.no_grad():  # small, as at the start of a training: large ones saturate the softmax
        for parameter in network.parameters():
            parameter.mul_(0.1 if parameter.requires_grad else 1.0)
    wanted = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic, wanted=wanted)


@both_arithmetics
@both_options
@pytest.mark.parametrize("setting", ["checkpoint", "functional call", "evaluation before backward", "taps"])
def test_settings_of_a_chain_with_an_option(arithmetic: str, option: str, setting: str) -> None:
    network, inputs = stack(arithmetic)
    with_option(network, option)
    given = {n: (1.1 * p).detach().requires_grad_() for n, p in network.named_parameters()}
    taps: list[torch.Tensor] = []
    network.blocks[1].register_forward_hook(lambda module, args, output: taps.append(output))

    def run() -> None:
        taps.clear()
        network.train()
        if setting == "checkpoint":
            checkpoint(network, inputs[0].requires_grad_(), use_reentrant=False).square().mean().backward()
        elif setting == "functional call":
            functional_call(network, given, inputs).square().mean().backward()
        elif setting == "taps":
            network(*inputs)
            taps[0].square().mean().backward()
        else:
            loss = loss_of(network, inputs)
            network.eval()
            loss.backward()

    wanted: dict[str, Any] = given if setting == "functional call" else dict(network.named_parameters())
    assert_agree(network, run, arithmetic, wanted=wanted)


class OverTokens(nn.Module):
    """Mixes the tokens of its input."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y - y.mean(1, keepdim=True)


class Twice(nn.Module):
    """Uses its weight twice."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.linear(x))


@both_arithmetics
@pytest.mark.parametrize("how", ["module", "hook", "second hook"])
def test_a_layer_that_mixes_the_tokens_later_ends_the_pieces(arithmetic: str, how: str) -> None:
    network, inputs = stack(arithmetic, dropout=0.0)
    with_option(network, "in pieces")
    if how == "second hook":
        network.blocks[1].linear.register_forward_hook(lambda module, args, output: 2 * output)
    loss_of(network, inputs).backward()  # cut into pieces along the tokens
    if how == "module":
        network.blocks[1].linear = OverTokens(network.blocks[1].linear)
    else:
        network.blocks[1].linear.register_forward_hook(
            lambda module, args, output: output - output.mean(1, keepdim=True)
        )
    whole = copy.deepcopy(network)
    for chain in rs.chains(whole):
        chain.chunks = 1
    torch.testing.assert_close(network(*inputs), whole(*inputs), rtol=1e-5, atol=1e-6)
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
def test_a_weight_that_a_segment_in_pieces_uses_twice_has_its_gradient_up_to_rounding(
    arithmetic: str,
) -> None:
    network, inputs = stack(arithmetic)
    with_option(network, "in pieces")
    for block in network.blocks:
        block.linear = Twice(block.linear)
    reversible, stored = (
        gradients_of(network, lambda: loss_of(network, inputs).backward(), stored=stored)
        for stored in (False, True)
    )
    # Six parts of a gradient are added up by pieces here, and in one row there.
    assert_same(reversible, stored, float_bound(network) if arithmetic == "float" else 6 * 2.0**-23)
