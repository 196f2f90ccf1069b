"""Autocast, loss scaling and low-precision networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.composition.agreement import assert_agree, both_arithmetics, gradients_of, loss_of, rewired, stack


def rounding(dtype: torch.dtype) -> float:
    """What counts as eps where branches compute in low precision.

    A rebuilt stream that is off by a float32 rounding falls to the next low-precision number in few places,
    so that over all elements a hundredth of that eps is left (which undoes the constant of `float_bound`).
    """
    return torch.finfo(dtype).eps / 100


low_precisions = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def autocast_loss(network: nn.Module, inputs: object, dtype: torch.dtype) -> torch.Tensor:
    with torch.autocast("cpu", dtype=dtype):
        return loss_of(network, inputs)


@both_arithmetics
@low_precisions
@pytest.mark.parametrize("name", ["timm vit", "transformers bert"])
def test_gradients_under_autocast_are_the_stored_ones(arithmetic: str, dtype: torch.dtype, name: str) -> None:
    network, inputs = rewired(name, arithmetic)

    def run() -> None:
        autocast_loss(network, inputs, dtype).backward()

    assert_agree(network, run, arithmetic, eps=rounding(dtype))


@both_arithmetics
def test_backward_may_run_inside_autocast_too(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(2):  # the second time with the weights that the first left in autocast's cache
                loss_of(network, inputs).backward()

    assert_agree(network, run, arithmetic, eps=rounding(torch.bfloat16))


@both_arithmetics
def test_scaled_and_unscaled_gradients_are_the_stored_ones(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    eps = rounding(torch.float16)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def scaled() -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        scaler.scale(autocast_loss(network, inputs, torch.float16)).backward()

    def unscaled() -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        scaler.scale(autocast_loss(network, inputs, torch.float16)).backward()
        scaler.unscale_(optimizer)

    expected = assert_agree(network, scaled, arithmetic, eps=eps)
    found = assert_agree(network, unscaled, arithmetic, eps=eps)
    assert all(torch.equal(found[n] * 2.0**10, expected[n]) for n in found)


@both_arithmetics
def test_a_step_with_infinite_gradients_is_skipped_and_the_next_one_taken(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    start = [p.detach().clone() for p in network.parameters()]
    for factor, moves in ((1e38, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(factor * autocast_loss(network, inputs, torch.float16)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, s) != moves for p, s in zip(network.parameters(), start, strict=True))
    assert scaler.get_scale() == 2.0**9


@both_arithmetics
@low_precisions
def test_a_low_precision_network_has_the_stored_gradients(arithmetic: str, dtype: torch.dtype) -> None:
    network, inputs = stack(arithmetic)
    network.to(dtype)
    inputs = (inputs[0].to(dtype),)
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic, eps=rounding(dtype))


@both_arithmetics
def test_a_float64_network_has_the_stored_gradients(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    network.double()
    inputs = (inputs[0].double(),)
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic, eps=1e-15)


@both_arithmetics
def test_another_default_dtype_changes_nothing(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    expected = gradients_of(network, lambda: loss_of(network, inputs).backward())
    torch.set_default_dtype(torch.float64)
    try:
        found = gradients_of(network, lambda: loss_of(network, inputs).backward())
        assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[n], expected[n]) for n in expected)
