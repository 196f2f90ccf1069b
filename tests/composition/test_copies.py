"""Copies of a rewired network that is in training: averages, deep copies, pickles."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import revsurgeon as rs
from tests.composition.agreement import assert_agree, both_arithmetics, gradients_of, loss_of, rewired, stack

AVERAGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "swa": AveragedModel,
    "ema": lambda network: AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True),
    "timm": lambda network: ModelEmaV3(network, decay=0.5),
}


@both_arithmetics
@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_of_the_weights_is_a_rewired_network_of_its_own(arithmetic: str, name: str) -> None:
    network, inputs = stack(arithmetic)
    average = AVERAGES[name](network)
    update = average.update if name == "timm" else average.update_parameters
    plain, _ = stack(arithmetic)
    weights = [[p.detach().clone() for p in network.parameters()]]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(3):
        loss_of(network, inputs).backward()
        assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
        optimizer.step()
        update(network)
        weights.append([p.detach().clone() for p in network.parameters()])
        if name != "timm" and step == 0:
            weights = weights[1:]  # torch's averages begin with the first update
    expected = weights[0]
    for count, later in enumerate(weights[1:], start=1):
        share = 1 / (count + 1) if name == "swa" else 0.5
        expected = [e + share * (w - e) for e, w in zip(expected, later, strict=True)]
    inner = average.module.eval()
    for parameter, mean in zip(inner.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, mean)
    plain.load_state_dict(inner.state_dict())
    with torch.no_grad():
        assert torch.equal(inner(*inputs), plain.eval()(*inputs))
    assert rs.chains(average)[0] is not rs.chains(network)[0]
    assert_agree(inner.train().requires_grad_(True), lambda: loss_of(inner, inputs).backward(), arithmetic)


@both_arithmetics
def test_coefficients_of_an_average_are_its_own(arithmetic: str) -> None:
    network, _ = stack(arithmetic)
    average = AveragedModel(network)
    before = rs.get_coefficients(network)
    rs.set_coefficients(network, 0.5, 0.5)
    assert rs.get_coefficients(average) == before


@both_arithmetics
def test_batch_statistics_of_an_average_are_computed_anew(arithmetic: str) -> None:
    network, inputs = rewired("timm resnet", arithmetic)
    average = AveragedModel(network)
    average.update_parameters(network)
    update_bn([inputs[0]], average)
    norms = [m for m in average.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)
    assert not any(bool((norm.running_mean == 0).all()) for norm in norms)


@both_arithmetics
def test_a_deep_copy_between_forward_and_backward_disturbs_nothing(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    expected = gradients_of(network, lambda: loss_of(network, inputs).backward())
    twins: list[nn.Module] = []

    def run() -> None:
        loss = loss_of(network, inputs)
        twins.append(copy.deepcopy(network))
        loss.backward()

    found = gradients_of(network, run)
    of_twin = gradients_of(twins[0], lambda: loss_of(twins[0], inputs).backward())
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert all(torch.equal(of_twin[n], expected[n]) for n in expected)


@both_arithmetics
def test_a_pickled_network_goes_on_training(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    loss_of(network, inputs).backward()
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    expected = gradients_of(network, lambda: loss_of(network, inputs).backward())
    found = gradients_of(twin, lambda: loss_of(twin, inputs).backward())
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert_agree(twin, lambda: loss_of(twin, inputs).backward(), arithmetic)


@both_arithmetics
def test_weights_loaded_in_the_middle_of_training_are_used(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    other = {n: 0.5 * t for n, t in network.state_dict().items()}
    loss_of(network, inputs).backward()
    for assign in (False, True):
        network.load_state_dict(other, assign=assign)
        network.requires_grad_(True)
        assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    loss = loss_of(network, inputs)
    network.load_state_dict({n: t for n, t in other.items() if "blocks" in n}, strict=False)
    with pytest.raises(rs.ChainBrokenError, match="changed in place between forward and backward"):
        loss.backward()
