"""Segments that run piece by piece: which ones may, and that the gradients are the stored chain's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import revsurgeon as rs
from revsurgeon.reversible.record import SegmentCall, SegmentMemory
from revsurgeon.rewiring.chunking import independent_dimension
from tests.gradients import assert_identical, relative_error, step
from tests.models import NETWORKS, seeded, timm_vit


def vit_with_dropout():
    return timm_vit(proj_drop_rate=0.2, attn_drop_rate=0.2)


def vit_with_drop_path():
    return timm_vit(drop_path_rate=0.3)


def rewired(make, arithmetic, chunks):
    network, inputs = seeded(make)
    network = rs.rewire(network, example_inputs=inputs, arithmetic=arithmetic, recipe="dr2-hold").train()
    for chain in rs.chains(network):
        chain.chunks = chunks
    return network, inputs


def cut_into(network):
    """How every segment of the last call was cut: (dimension, pieces)."""
    plans = [
        plan
        for m in network.modules()
        if hasattr(m.__dict__.get("forward"), "_plans")
        for plan in m.__dict__["forward"]._plans.values()
    ]
    return [set(segment._dimensions.values()) for plan in plans for segment in plan.segments]


SAMPLE = {
    "vit": NETWORKS["timm vit"],
    "vit with dropout": vit_with_dropout,
    "vit with drop path": vit_with_drop_path,
    "convnext": NETWORKS["timm convnext"],
    "resnet": NETWORKS["timm resnet"],
    "bert": NETWORKS["transformers bert"],
}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16 autocast"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "resnet" else ()) for name in SAMPLE]
)
def test_gradients_in_pieces_are_the_stored_chains_bit_for_bit(name, autocast):
    network, inputs = rewired(SAMPLE[name], "exact", 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        reversible = step(network, inputs)
        stored = step(network, inputs, inside=rs.stored_activations(network))
    assert_identical(reversible, stored)


def test_pieces_give_the_gradients_of_the_whole():
    network, inputs = rewired(NETWORKS["timm vit"], "exact", 1)
    network.eval()
    whole = step(network, inputs)
    for chain in rs.chains(network):
        chain.chunks = 4
    pieces = step(network, inputs)
    assert any(dimensions == {1} for dimensions in cut_into(network))
    # Sums over the tokens in another order: at most n * eps, for fewer than 2**10 terms.
    assert relative_error(pieces.gradients, whole.gradients) <= 2**10 * torch.finfo().eps


def test_the_pretrained_network_at_1_0_is_not_cut():
    network, inputs = seeded(NETWORKS["timm vit"])
    with torch.no_grad():
        expected = network.eval()(*inputs)
        rs.rewire(network, example_inputs=inputs, recipe="dr2-hold")
        for chain in rs.chains(network):
            chain.chunks = 4
        rs.set_coefficients(network, 1.0, 0.0)
        assert torch.equal(network(*inputs), expected)
    assert cut_into(network) == [set()] * len(cut_into(network))


class Tokens(nn.Module):
    """Branches on (batch, tokens, features) that differ in what a token sees of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(5)
        self.register_parameter("places", nn.Parameter(torch.randn(5, 1)))


def mlp(block, x, alpha):
    return block.linear(x).relu() + alpha * x


def previous_token(block, x, alpha):
    return torch.roll(x, 1, dims=1) + alpha * x


def token_mean(block, x, alpha):
    return x.mean(dim=1, keepdim=True) + alpha * x


def batch_statistics(block, x, alpha):
    return block.norm(x) + alpha * x


def bias_of_each_place(block, x, alpha):
    return block.places * x + alpha * x


def angle_of_each_place(block, x, alpha):
    return torch.arange(x.shape[1])[:, None] * x + alpha * x


def one_mask_for_all_tokens(block, x, alpha):
    mask = torch.rand(x.shape[0], 1, 1) > 0.5
    return (x * mask if block.training else x) + alpha * x


def one_mask_for_the_batch(block, x, alpha):
    mask = torch.rand(1, 1, 1) > 0.5
    return (x * mask if block.training else x) + alpha * x


def greatest_of_all(block, x, alpha):
    return (x == x.max()).float() + alpha * x


@pytest.mark.parametrize(
    ("function", "dimension"),
    [
        (mlp, 1),
        (previous_token, 2),
        (token_mean, 2),
        (batch_statistics, None),
        (bias_of_each_place, 2),
        (angle_of_each_place, 2),
        (one_mask_for_all_tokens, 0),
        (one_mask_for_the_batch, None),
        (greatest_of_all, None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_segment_is_cut_only_where_its_places_are_independent(function, dimension):
    torch.manual_seed(0)
    block = Tokens().train()
    state = {name: t.clone() for name, t in block.state_dict().items()}
    call = SegmentCall("segment", function, block, [], list, list, SegmentMemory())
    assert independent_dimension(call, torch.randn(4, 5, 6), 0.9) == dimension
    assert all(torch.equal(t, state[name]) for name, t in block.state_dict().items())
    assert block.training


def test_looking_for_pieces_leaves_the_random_state_alone():
    block = Tokens()
    call = SegmentCall("segment", one_mask_for_all_tokens, block, [], list, list, SegmentMemory())
    x = torch.randn(4, 5, 6)
    before = torch.get_rng_state()
    independent_dimension(call, x, 0.9)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_segment_that_reads_a_tensor_beside_the_stream_is_run_whole():
    def masked(block, x, alpha, mask):
        return x * mask + alpha * x

    call = SegmentCall("segment", masked, Tokens(), [torch.ones(4, 5, 6)], list, list, SegmentMemory())
    assert independent_dimension(call, torch.randn(4, 5, 6), 0.9) is None


class LargestGelu(TorchDispatchMode):
    """The most elements that any gelu had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.gelu.default:
            self.elements = max(self.elements, result.numel())
        return result


def test_the_hidden_layer_of_an_mlp_is_never_there_as_a_whole():
    found = {}
    for chunks in (1, 4):
        network, inputs = rewired(NETWORKS["timm vit"], "float", chunks)
        network.eval()
        step(network, inputs)  # looks for the dimension
        with LargestGelu() as largest:
            step(network, inputs)
        found[chunks] = largest.elements
    tokens = 17
    assert found[4] * tokens == found[1] * 5  # of 17 tokens, in pieces of 5, 4, 4 and 4
