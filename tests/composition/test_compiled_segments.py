"""torch.compile of the segments: the same gradients both ways, and one graph for all coefficients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters

import revsurgeon as rs
from revsurgeon.reversible.arithmetic import make_arithmetic
from tests.gradients import assert_identical, relative_error, step
from tests.models import NETWORKS, residual_stack, seeded, timm_vit


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def rewired(make, *, arithmetic="exact", backend="aot_eager"):
    network, inputs = seeded(make)
    network = rs.rewire(network, example_inputs=inputs, arithmetic=arithmetic, recipe="dr2-hold").train()
    plain = step(network, inputs)
    rs.compile_segments(network, backend=backend)
    return network, inputs, plain


def noisy_vit():
    return timm_vit(drop_path_rate=0.2, proj_drop_rate=0.2, attn_drop_rate=0.2)


def test_compiled_segments_reverse_bit_for_bit():
    network, inputs, plain = rewired(noisy_vit)
    reversible = step(network, inputs)
    stored = step(network, inputs, inside=rs.stored_activations(network))
    assert_identical(reversible, stored)
    assert counters["stats"]["unique_graphs"] > 0
    # The compiled backward may round otherwise than autograd's own: n operations of relative error eps.
    assert relative_error(reversible.gradients, plain.gradients) <= 2**10 * torch.finfo().eps


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_s_compiled_segments_reverse_bit_for_bit(name):
    # torch's aot_eager traces the gradient of dropout with a GPU's strides, and fails where it is not
    # contiguous on a CPU, with stored activations too. inductor does not.
    backend = "inductor" if name == "torchvision vit" else "aot_eager"
    network, inputs, _ = rewired(NETWORKS[name], backend=backend)
    assert_identical(step(network, inputs), step(network, inputs, inside=rs.stored_activations(network)))


@pytest.mark.slow
def test_segments_compiled_by_inductor_reverse_bit_for_bit():
    network, inputs, plain = rewired(residual_stack, backend="inductor")
    reversible = step(network, inputs)
    assert_identical(reversible, step(network, inputs, inside=rs.stored_activations(network)))
    assert relative_error(reversible.gradients, plain.gradients) <= 2**10 * torch.finfo().eps


def test_coefficients_that_change_every_step_do_not_recompile():
    network, inputs, _ = rewired(residual_stack)
    step(network, inputs)
    graphs = counters["stats"]["unique_graphs"]
    with dynamo_config.patch(error_on_recompile=True):
        for number in range(20):
            rs.set_coefficients(network, 0.9 - 0.03 * number, 0.1 + 0.03 * number)
            step(network, inputs)
    assert counters["stats"]["unique_graphs"] == graphs


def test_compiled_segments_see_the_alpha_of_their_step():
    network, inputs, _ = rewired(residual_stack, arithmetic="float")
    for alpha, beta in ((0.9, 0.4), (0.2, 0.9), (1.0, 0.5)):
        rs.set_coefficients(network, alpha, beta)
        compiled = step(network, inputs)
        plain = copy.deepcopy(network)
        for chain in rs.chains(plain):
            chain.compile_options = None
        expected = step(plain, inputs)
        assert relative_error(compiled.gradients, expected.gradients) <= 2**10 * torch.finfo().eps


def test_a_copy_of_a_compiled_network_compiles_its_own_segments():
    network, inputs, _ = rewired(residual_stack)
    expected = step(network, inputs)
    twin = copy.deepcopy(network)
    assert_identical(step(twin, inputs), expected)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(step(twin, inputs).output, expected.output)
    assert_identical(step(network, inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("beta", [2**-16, 0.01, 0.1, 0.3, 0.5, 1.0])
def test_compiled_exact_streams_have_the_same_bits(beta, dtype):
    plain = make_arithmetic("exact", beta, 20)
    fused = make_arithmetic("exact", beta, 20, backend="inductor")
    torch.manual_seed(0)
    streams = plain.start(50 * torch.randn(3, 7, 5))
    g = (50 * torch.randn(3, 7, 5)).to(dtype)
    expected_y, expected_kept = plain.next_y(streams.x.clone())
    y, kept = fused.next_y(streams.x.clone())
    x = fused.next_x(streams.y, g)
    assert torch.equal(x, plain.next_x(streams.y, g))
    assert torch.equal(fused.next_x(streams.y.clone(), g, reuse=True), x)
    assert torch.equal(y, expected_y)
    assert torch.equal(kept, expected_kept)
    assert torch.equal(fused.previous_x(y, kept, streams.x.stride()), streams.x)
    narrow = x.to(torch.int32)  # as the tape keeps it where it fits
    for behind in (x, narrow) if torch.equal(narrow.double(), x) else (x,):
        out = torch.empty_like(behind)
        fused.previous_y(behind, g, out)
        assert torch.equal(out.double(), streams.y)
        fused.previous_y(behind, g, behind)
        assert torch.equal(behind, out)
    assert torch.equal(fused.previous_x(y.to(torch.int32), kept, streams.x.stride()), streams.x)
