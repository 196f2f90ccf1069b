"""Traps of reversible backpropagation in the networks of the libraries that have them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.composition.agreement import assert_agree, both_arithmetics, loss_of, rewired, rewired_from
from tests.models import Stack


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


class EncoderInside(nn.Module):
    """The layer whose kernel depends on the grad mode is one leaf of the segment."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x)


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "post-norm": lambda: encoder(False),
    "pre-norm": lambda: encoder(True),
    "inside a branch": lambda: Stack(*(EncoderInside() for _ in range(3))),
}


@both_arithmetics
@pytest.mark.parametrize("name", ENCODERS)
def test_torchs_encoder_layers_whose_kernels_change_with_the_grad_mode(arithmetic: str, name: str) -> None:
    network, inputs = rewired_from(ENCODERS[name], arithmetic)
    for training in (True, False):
        network.train(training)
        assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
@pytest.mark.parametrize("name", ["timm convnext", "torchvision swin3d"])
def test_stochastic_depth_drops_the_same_paths(arithmetic: str, name: str) -> None:
    network, inputs = rewired(name, arithmetic)
    inputs = (inputs[0].repeat(4, *[1] * (inputs[0].ndim - 1)),)  # so that some samples lose a path
    found = assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    network.eval()
    kept = assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    assert not all(torch.equal(found[n], kept[n]) for n in kept)


@both_arithmetics
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_davit_with_a_batch_of_one(arithmetic: str, memory_format: torch.memory_format) -> None:
    network, inputs = rewired("timm davit", arithmetic)
    network.to(memory_format=memory_format)
    image = (inputs[0][:1].contiguous(memory_format=memory_format),)
    assert_agree(network, lambda: loss_of(network, image).backward(), arithmetic)


@both_arithmetics
def test_albert_calls_one_block_again_and_again(arithmetic: str) -> None:
    from transformers import AlbertConfig, AlbertModel

    small = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}

    def make() -> nn.Module:
        return AlbertModel(AlbertConfig(vocab_size=50, embedding_size=8, **small, **dropout))

    network, inputs = rewired_from(make, arithmetic, torch.arange(14).view(2, 7))
    assert rs.chains(network)[0].segments == (2,) * 6
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
def test_a_feature_pyramid_over_the_ends_of_the_chains(arithmetic: str) -> None:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.resnet import BasicBlock, ResNet

    def make() -> nn.Module:
        layers = {"layer1": "0", "layer2": "1", "layer3": "2"}
        return BackboneWithFPN(ResNet(BasicBlock, [3, 3, 3, 3]), layers, [64, 128, 256], 16)

    network, inputs = rewired_from(make, arithmetic, torch.randn(2, 3, 32, 32))
    assert len(rs.chains(network)) == 3
    network.eval()

    def run() -> None:
        sum(level.square().mean() for level in network(*inputs).values()).backward()

    assert_agree(network, run, arithmetic)
