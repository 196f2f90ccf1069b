"""`CoefficientScaler` in the place of timm's loss scaler: it steps, clips, saves and restores like it."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.utils import NativeScaler
from torch import nn

import revsurgeon as rs
from revsurgeon.integrations.timm import CoefficientScaler, LossScaler
from tests.composition.agreement import loss_of, stack

PATH = {"start": (0.9, 0.1), "end": (0.5, 0.5)}
STEPS = 4


def made(scaler: LossScaler | None = None) -> tuple[nn.Module, torch.Tensor, CoefficientScaler]:
    network, inputs = stack("exact", dropout=0.0)
    schedule = rs.CoefficientSchedule(network, STEPS, **PATH)
    return network, inputs, CoefficientScaler(schedule, scaler)


def native() -> NativeScaler:
    return NativeScaler(device="cpu")


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.1)


@pytest.mark.parametrize("inner", [None, native], ids=["no scaler", "timm's scaler"])
def test_the_coefficients_move_with_the_optimizer_and_not_while_gradients_accumulate(inner) -> None:
    network, inputs, scaler = made(inner and inner())
    optimizer = sgd(network)
    start = copy.deepcopy(network.state_dict())
    scaler(loss_of(network, inputs), optimizer, need_update=False)
    assert rs.get_coefficients(network) == PATH["start"]
    assert all(torch.equal(network.state_dict()[name], start[name]) for name in start)
    scaler(loss_of(network, inputs), optimizer)
    assert rs.get_coefficients(network) == pytest.approx((0.8, 0.2))
    assert not torch.equal(network.stem.weight, start["stem.weight"])


def test_it_takes_the_steps_of_a_plain_loop_with_clipping() -> None:
    network, inputs, scaler = made()
    plain = copy.deepcopy(network)
    schedule = rs.CoefficientSchedule(plain, STEPS, **PATH)
    optimizers = sgd(network), sgd(plain)
    for _ in range(2):
        optimizers[0].zero_grad()
        scaler(loss_of(network, inputs), optimizers[0], clip_grad=0.01, parameters=network.parameters())
        optimizers[1].zero_grad()
        loss_of(plain, inputs).backward()
        assert nn.utils.clip_grad_norm_(plain.parameters(), 0.01) > 0.01
        optimizers[1].step()
        schedule.step()
    found, expected = network.state_dict(), plain.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("inner", [None, native], ids=["no scaler", "timm's scaler"])
def test_its_state_brings_back_the_coefficients_and_the_scale(inner) -> None:
    network, inputs, scaler = made(inner and inner())
    scaler(loss_of(network, inputs), sgd(network))
    if inner:
        scaler.scaler._scaler.update(new_scale=8.0)
    fresh, _, again = made(inner and inner())
    again.load_state_dict(scaler.state_dict())
    assert rs.get_coefficients(fresh) == rs.get_coefficients(network) == pytest.approx((0.8, 0.2))
    assert again.schedule.steps_done == 1
    assert again.state_dict() == scaler.state_dict()
