"""A rewired language model generates with a key-value cache, and refuses one in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import revsurgeon as rs

IDS = torch.randint(3, 99, (2, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def language_model() -> tuple[nn.Module, torch.Tensor]:
    """A rewired decoder, and what it generated before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LlamaForCausalLM(LlamaConfig(vocab_size=99, **small)).eval()
    before = generated(network, use_cache=True)
    rs.rewire(network, example_inputs={"input_ids": IDS, "use_cache": False}, recipe="dr2-hold")
    return network, before


def generated(network: nn.Module, use_cache: bool) -> torch.Tensor:
    tokens: torch.Tensor = network.generate(
        IDS, max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=0
    )
    return tokens


def test_at_1_0_the_cache_gives_the_tokens_of_the_original(
    language_model: tuple[nn.Module, torch.Tensor],
) -> None:
    network, before = language_model
    rs.set_coefficients(network.eval(), 1.0, 0.0)
    assert torch.equal(generated(network, use_cache=True), before)


def test_at_other_coefficients_tokens_are_the_same_with_and_without_a_cache(
    language_model: tuple[nn.Module, torch.Tensor],
) -> None:
    network, _ = language_model
    rs.set_coefficients(network.eval(), 0.5, 0.5)
    assert torch.equal(generated(network, use_cache=True), generated(network, use_cache=False))


def test_a_cache_is_refused_where_gradients_are_wanted(
    language_model: tuple[nn.Module, torch.Tensor],
) -> None:
    network, _ = language_model
    rs.set_coefficients(network.train(), 0.5, 0.5)
    with pytest.raises(rs.UnsupportedModelError, match="an argument is a DynamicCache"):
        network(input_ids=IDS, use_cache=True)
