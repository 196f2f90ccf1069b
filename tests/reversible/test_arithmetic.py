"""Exact arithmetic loses nothing, and keeps no more bits than it says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import revsurgeon as rs
from revsurgeon.reversible.arithmetic import (
    Arithmetic,
    ExactArithmetic,
    FloatArithmetic,
    Streams,
    grid_bits_for,
    laid_out,
)
from revsurgeon.reversible.bits import pack_bits, unpack_bits
from revsurgeon.reversible.held import Held
from tests.gradients import assert_identical, step
from tests.models import residual_stack, seeded


def coupling(
    arithmetic: Arithmetic, streams: Streams, g: torch.Tensor
) -> tuple[Streams, torch.Tensor | None]:
    """The next streams, and what is kept to come back."""
    y, kept = arithmetic.next_y(streams.x.clone())
    return Streams(arithmetic.next_x(streams.y, g), y), kept


def previous_y(arithmetic: Arithmetic, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """y of the streams before, found elsewhere and in the memory of x behind it."""
    found, in_place = torch.empty_like(x), x.clone()
    arithmetic.previous_y(x, g, found)
    arithmetic.previous_y(in_place, g, in_place)
    assert torch.equal(found, in_place)
    return found


BETAS = (0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


@given(st.integers(0, 16), st.integers(0, 70), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_packing_keeps_every_value_in_exactly_b_bits(bits: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.int32 if bits > 8 else torch.uint8
    values = torch.randint(0, 2**bits, (count,), generator=generator, dtype=dtype)
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-count // 8) * bits
    assert packed.untyped_storage().nbytes() == packed.numel()
    assert torch.equal(unpack_bits(packed, bits, values.shape), values)


@given(
    beta=st.one_of(st.sampled_from(BETAS), st.floats(2.0**-16, 1.0)),
    magnitude=st.floats(1e-3, 1e4),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_every_integer_comes_back(beta: float, magnitude: float, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = magnitude * torch.randn(shape, generator=generator)
    arithmetic = ExactArithmetic(beta, grid_bits_for(8 * magnitude))
    streams = arithmetic.start(x)
    g = magnitude * torch.randn(shape, generator=generator)
    after, kept = coupling(arithmetic, streams, g)
    before_x = arithmetic.previous_x(after.y, kept, streams.x.stride())
    before_y = previous_y(arithmetic, after.x, g)
    narrow_x, narrow_y = after.x.to(torch.int32), after.y.to(torch.int32)  # as the tape keeps them
    if torch.equal(narrow_x.double(), after.x):
        assert torch.equal(previous_y(arithmetic, narrow_x, g).double(), before_y)
        assert torch.equal(arithmetic.previous_x(narrow_y, kept, streams.x.stride()), before_x)
    in_place = streams.y.clone()
    assert arithmetic.next_x(in_place, g, reuse=True) is in_place
    assert torch.equal(in_place, after.x)
    assert torch.equal(before_x, streams.x)
    assert torch.equal(before_y, streams.y)
    assert abs(arithmetic.beta - beta) <= 2.0**-17
    # y is the floor of beta * x, and x the branch's output and y on the grid.
    assert torch.equal(after.y, torch.floor(streams.x * arithmetic.p / 2**arithmetic.m))
    grid = 2.0**-arithmetic.grid_bits
    torch.testing.assert_close(
        after.x * grid, g.double() + streams.y * grid, rtol=0, atol=0.5 * grid + 2**-40 * magnitude
    )


@pytest.mark.parametrize(
    ("beta", "bits"), [(0.01, 7), (0.05, 5), (0.1, 4), (0.3, 2), (0.5, 1), (0.7, 1), (0.9, 1), (1, 0)]
)
def test_the_side_buffer_takes_the_least_whole_number_of_bits(beta: float, bits: int) -> None:
    arithmetic = ExactArithmetic(beta)
    assert arithmetic.bits == bits == math.ceil(math.log2(1 / arithmetic.beta))
    x = torch.randn(64, 10)
    _, kept = arithmetic.next_y(arithmetic.start(x).x)
    assert kept.untyped_storage().nbytes() == x.numel() * bits // 8


@pytest.mark.parametrize("shape", [(3, 17), (1, 50), (2, 5, 4)])
def test_streams_that_are_taken_in_parts_have_the_same_bits(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = 50 * torch.randn(shape).transpose(0, -1)
    for arithmetic in (ExactArithmetic(0.1), ExactArithmetic(0.01), ExactArithmetic(2.0**-16)):
        streams = arithmetic.start(x)
        whole, whole_x = arithmetic.next_y(streams.x.clone()), arithmetic.next_x(streams.y, x)
        whole_y = previous_y(arithmetic, whole_x, x)
        for size in (1, 7, 20):
            monkeypatch.setattr("revsurgeon.reversible.arithmetic._PART", size)
            y, kept = arithmetic.next_y(arithmetic.start(x).x)
            assert torch.equal(y, whole[0])
            assert y.stride() == whole[0].stride()
            assert torch.equal(kept, whole[1])
            assert torch.equal(arithmetic.next_x(streams.y.clone(), x, reuse=True), whole_x)
            assert torch.equal(previous_y(arithmetic, whole_x, x), whole_y)


@pytest.mark.parametrize("beta", BETAS)
def test_float_reversal_is_right_up_to_rounding(beta: float) -> None:
    arithmetic = FloatArithmetic(beta)
    x, g = torch.randn(50).double(), torch.randn(50).double()
    streams = arithmetic.start(x)
    after, kept = coupling(arithmetic, streams, g)
    assert kept is None
    eps = torch.finfo(torch.float64).eps
    torch.testing.assert_close(arithmetic.previous_x(after.y, None, (1,)), x, rtol=2 * eps, atol=0)
    # x - G takes away what was added: off by the rounding of the sum.
    bound = 2 * eps * float(after.x.abs().max())
    torch.testing.assert_close(previous_y(arithmetic, after.x, g), streams.y, rtol=0, atol=bound)


def test_both_arithmetics_compute_the_same_network_up_to_the_grid() -> None:
    x, g = torch.randn(50), torch.randn(50)
    exact, plain = ExactArithmetic(0.5), FloatArithmetic(0.5)
    results = []
    for arithmetic in (exact, plain):
        streams = arithmetic.start(x)
        for _ in range(5):
            streams, _ = coupling(arithmetic, streams, g)
        results.append(arithmetic.merge(streams, "normalized").double())
    torch.testing.assert_close(*results, rtol=0, atol=20 * 2.0**-20)


def test_streams_keep_the_memory_layout_that_they_had() -> None:
    x = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last)
    for arithmetic in (ExactArithmetic(0.1), FloatArithmetic(0.1)):
        after, kept = coupling(arithmetic, arithmetic.start(x), x.contiguous())
        assert arithmetic.previous_x(after.y, kept, x.stride()).stride() == x.stride()
        assert arithmetic.value(after.x, torch.float32).stride() == x.contiguous().stride()
    assert laid_out(x, x.stride()) is x
    other = laid_out(x, x.contiguous().stride())
    assert other.stride() == x.contiguous().stride() != x.stride()
    assert torch.equal(other, x)


@given(
    depth=st.integers(1, 6),
    beta=st.sampled_from(BETAS),
    alpha=st.sampled_from((0.0, 0.3, 1.0)),
    scale=st.sampled_from((1e-3, 1.0, 1e4)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15, deadline=None)
def test_gradients_are_exact_at_any_depth_coefficients_and_magnitude(
    depth: int, beta: float, alpha: float, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    network, inputs = residual_stack(depth, dropout=0.3)
    inputs = (scale * inputs[0],)
    rs.rewire(network, example_inputs=inputs, arithmetic="exact").train()
    rs.set_coefficients(network, alpha, beta)
    assert_identical(step(network, inputs), step(network, inputs, inside=rs.stored_activations(network)))


@pytest.mark.slow
def test_a_deep_chain_of_96_segments_is_exact_where_float_is_garbage() -> None:
    network, inputs = seeded(lambda: residual_stack(96))
    rs.rewire(network, example_inputs=inputs, arithmetic="exact").train()
    rs.set_coefficients(network, 0.9, 0.1)
    assert_identical(step(network, inputs), step(network, inputs, inside=rs.stored_activations(network)))
    rs.chains(network)[0].arithmetic = "float"
    wrong, right = step(network, inputs), step(network, inputs, inside=rs.stored_activations(network))
    errors = [float((wrong.gradients[n] - g).norm() / g.norm()) for n, g in right.gradients.items()]
    assert not max(errors) < 0.1  # NaN counts as garbage too


def test_a_held_tensor_goes_through_the_callers_hooks_and_notices_changes() -> None:
    seen: list[torch.Size] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor.shape)
        return tensor

    tensor = torch.ones(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        Held(tensor)
    assert seen == [torch.Size([3])]
    held = Held(tensor)
    assert torch.equal(held.tensors()[0], tensor)
    tensor.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        held.tensors()
