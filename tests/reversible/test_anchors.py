"""Streams stored on the way: how far the error of float reversal grows, and segments that do not repeat."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import revsurgeon as rs
from revsurgeon.errors import ChainBrokenError, VerificationError
from revsurgeon.recipes import load_recipe
from tests.gradients import assert_same_state, relative_error, step
from tests.models import Stack, residual_stack

DEPTH = 12
ALPHA, BETA = 0.9, 0.1
EPS = torch.finfo(torch.float32).eps


def rewired(anchors, depth=DEPTH):
    torch.manual_seed(0)
    network, inputs = residual_stack(depth, dropout=0.1)
    network = rs.rewire(network, example_inputs=inputs, arithmetic="float", recipe="dr2-hold").train()
    for chain in rs.chains(network):
        chain.anchors = anchors
    return network, inputs


def error(anchors, **settings):
    network, inputs = rewired(anchors, **settings)
    stored = step(network, inputs, inside=rs.stored_activations(network))
    reversible = step(network, inputs)
    assert torch.equal(reversible.output, stored.output)
    assert_same_state(reversible, stored)
    return relative_error(reversible.gradients, stored.gradients)


@pytest.mark.parametrize("anchors", [1, 2, 3, 5])
def test_the_error_grows_only_from_one_stored_pair_of_streams_to_the_next(anchors):
    # x before a segment errs by about eps * |x| / beta, and each further one multiplies that by 1 / beta;
    # directly behind a stored pair nothing is divided. 2**7 for the sums of a gradient.
    assert error(anchors) <= 2**7 * EPS / BETA ** max(anchors - 1, 1)


def test_without_them_the_same_network_s_gradients_are_garbage():
    assert error(0) > 2**7 * EPS / BETA**4


def test_a_backward_from_the_middle_begins_at_the_nearest_stored_pair():
    network, inputs = rewired(3)
    taps = []
    network.blocks[6].register_forward_hook(lambda module, args, output: taps.append(output))

    def gradients():
        taps.clear()
        torch.manual_seed(0)
        network(*inputs)
        return torch.autograd.grad(taps[0].square().sum(), network.blocks[:7].parameters())

    found = gradients()
    with rs.stored_activations(network):
        expected = gradients()
    # Of the segments 0 to 6, the one behind the pair stored at 8 is three divisions away.
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual - wanted).norm() <= 2**7 * EPS / BETA**3 * wanted.norm()


def test_a_second_backward_walks_from_them_again():
    network, inputs = rewired(2)
    torch.manual_seed(0)
    loss = network(*inputs).square().sum()
    parameters = list(network.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(loss, parameters), first))


def stored_bytes(network, inputs):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(*inputs).sum()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    found = sum(size for pointer, size in kept.items() if pointer not in weights)
    loss.backward()
    return found


def test_each_stored_pair_costs_two_streams():
    network, inputs = rewired(0)
    stream = inputs[0].nbytes
    without = stored_bytes(network, inputs)
    for chain in rs.chains(network):
        chain.anchors = 4
    with_pairs = stored_bytes(network, inputs)  # behind 4 and 8; the last one is stored anyway
    assert with_pairs - without == 2 * 2 * stream


def test_exact_arithmetic_stores_none():
    network, inputs = rewired(1)
    for chain in rs.chains(network):
        chain.arithmetic = "exact"
    with_anchors = stored_bytes(network, inputs)
    for chain in rs.chains(network):
        chain.anchors = 0
    assert stored_bytes(network, inputs) == with_anchors


class Noisy(nn.Module):
    """A kernel that does not repeat when gradients are wanted: noise that no generator of torch draws."""

    def __init__(self, width: int, noise: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.noise = noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return y * (1 + self.noise * random.uniform(-1, 1)) if torch.is_grad_enabled() else y


class NoisyBlock(nn.Module):
    def __init__(self, width: int, noise: float) -> None:
        super().__init__()
        self.branch = Noisy(width, noise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def noisy(noise, depth=DEPTH):
    torch.manual_seed(0)
    return Stack(*(NoisyBlock(8, noise) for _ in range(depth))), (torch.randn(4, 8),)


def test_segments_that_do_not_repeat_get_as_few_stored_streams_as_will_do():
    network, inputs = noisy(1e-6)
    rs.rewire(network, example_inputs=inputs, recipe="dr2-hold", arithmetic="auto")
    (chain,) = rs.chains(network)
    assert chain.arithmetic == "float"
    assert 1 <= chain.anchors < DEPTH
    network.train()
    reversible = step(network, inputs)
    stored = step(network, inputs, inside=rs.stored_activations(network))
    # What was allowed when it was measured, on another batch with other noise.
    assert relative_error(reversible.gradients, stored.gradients) <= 10 * 1e-3
    chain.arithmetic = "exact"
    with pytest.raises(ChainBrokenError, match="did not repeat"):
        step(network, inputs)


def test_segments_that_never_compute_the_same_are_refused_with_their_name():
    network, inputs = noisy(0.5)
    with pytest.raises(ChainBrokenError, match="did not repeat"):
        rs.rewire(network, example_inputs=inputs, recipe="dr2-hold", arithmetic="auto")
    assert rs.chains(network) == []


class NeverTheSame(Noisy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (1 + self.noise * random.uniform(-1, 1))


def test_a_network_that_computes_something_else_every_time_is_refused_for_that():
    network, inputs = noisy(0.1)
    for block in network.blocks:
        block.branch.__class__ = NeverTheSame
    with pytest.raises(VerificationError, match="does not compute the same twice"):
        rs.rewire(network, example_inputs=inputs, recipe="dr2-hold", arithmetic="auto")
    assert rs.chains(network) == []


def test_a_recipe_says_how_often_float_streams_are_stored():
    recipe = load_recipe("dr2-hold").model_copy(update={"anchors": 3, "arithmetic": "float"})
    network, inputs = residual_stack(DEPTH)
    rs.rewire(network, example_inputs=inputs, recipe=recipe)
    assert [chain.anchors for chain in rs.chains(network)] == [3]


@pytest.mark.parametrize("value", [0, -1, 1.5, "often"])
def test_a_recipe_with_a_senseless_number_of_segments_is_refused(tmp_path, value):
    text = f"name: mine\nmode: dr2\nstart: {{alpha: 0.9, beta: 0.1}}\nanchors: {value}\n"
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(rs.RecipeError, match="anchors"):
        load_recipe(tmp_path / "mine.yaml")


def test_what_a_recipe_says_of_anchors_and_pieces_is_in_the_artifact(tmp_path):
    recipe = load_recipe("dr2-hold").model_copy(update={"anchors": 3, "chunks": 2, "arithmetic": "float"})
    path = rs.convert("demo", recipe=recipe, output=tmp_path / "demo", verify=False)
    (chain,) = rs.chains(rs.load(path))
    assert (chain.anchors, chain.chunks, chain.arithmetic) == (3, 2, "float")
    rs.save(rs.load(path), tmp_path / "again")
    (chain,) = rs.chains(rs.load(tmp_path / "again"))
    assert (chain.anchors, chain.chunks, chain.arithmetic) == (3, 2, "float")
