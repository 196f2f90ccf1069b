"""On a CUDA device: exact reversal bit for bit, and memory that does not grow with depth."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

import revsurgeon as rs
from tests.gradients import assert_identical, step
from tests.models import NETWORKS, residual_stack, seeded, timm_vit

pytestmark = pytest.mark.gpu

AMP = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def rewired(make, beta, arithmetic="exact"):
    network, inputs = seeded(make)
    inputs = pytree.tree_map_only(torch.Tensor, torch.Tensor.cuda, inputs)
    network = rs.rewire(
        network.cuda(), example_inputs=inputs, arithmetic=arithmetic, recipe="dr2-hold"
    ).train()
    rs.set_coefficients(network, 1.0 - beta, beta)
    return network, inputs


@pytest.mark.parametrize("amp", AMP)
@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_reverses_bit_for_bit(name, beta, amp):
    network, inputs = rewired(NETWORKS[name], beta)
    torch.use_deterministic_algorithms(True, warn_only=True)  # of stored backward passes too
    try:
        with torch.autocast("cuda", AMP[amp] or torch.bfloat16, enabled=AMP[amp] is not None):
            torch.cuda.manual_seed(0)
            reversible = step(network, inputs)
            torch.cuda.manual_seed(0)
            stored = step(network, inputs, inside=rs.stored_activations(network))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_identical(reversible, stored)


def test_dropout_on_the_device_is_replayed_and_leaves_its_generator_where_a_stored_step_does():
    network, inputs = rewired(lambda: timm_vit(proj_drop_rate=0.2, drop_path_rate=0.2), 0.1)
    torch.cuda.manual_seed(0)
    reversible = step(network, inputs)
    after = torch.cuda.get_rng_state()
    torch.cuda.manual_seed(0)
    assert_identical(reversible, step(network, inputs, inside=rs.stored_activations(network)))
    assert torch.equal(torch.cuda.get_rng_state(), after)


def test_a_step_on_a_side_stream_is_right():
    network, inputs = rewired(residual_stack, 0.1)
    expected = step(network, inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = step(network, inputs)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    assert_identical(found, expected)


def test_what_a_float_chain_keeps_does_not_grow_with_its_depth():
    kept = []
    for depth in (4, 16):
        network, inputs = rewired(lambda depth=depth: timm_vit(depth), 1.0, "float")
        network(*inputs).sum().backward()
        network.zero_grad()
        before = torch.cuda.memory_allocated()
        loss = network(*inputs).sum()
        kept.append(torch.cuda.memory_allocated() - before)
        loss.backward()
    assert kept[1] == kept[0]
