"""Modes that people run torch in: memory formats, saved-tensor hooks, anomaly detection, inference mode."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import revsurgeon as rs
from tests.composition.agreement import (
    COEFFICIENTS,
    assert_agree,
    both_arithmetics,
    gradients_of,
    loss_of,
    rewired,
    rewired_from,
    stack,
)
from tests.models import residual_stack


@both_arithmetics
@pytest.mark.parametrize("name", ["timm resnet", "timm convnext"])
@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last(arithmetic: str, name: str, batch: int) -> None:
    network, inputs = rewired(name, arithmetic, training=batch > 1)
    network.to(memory_format=torch.channels_last)
    images = inputs[0][:batch].to(memory_format=torch.channels_last)
    assert_agree(network, lambda: loss_of(network, (images,)).backward(), arithmetic)


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def renamed(tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    return "packed", tensor.clone()


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "anomaly detection": torch.autograd.detect_anomaly,
    "deterministic algorithms": deterministic_algorithms,
    "activations saved on the CPU": torch.autograd.graph.save_on_cpu,
    "saved-tensor hooks": lambda: torch.autograd.graph.saved_tensors_hooks(renamed, lambda p: p[1]),
    "counting operations": lambda: FlopCounterMode(display=False),
    "profiling": torch.profiler.profile,
    "one thread of autograd": lambda: torch.autograd.set_multithreading_enabled(False),
    "mutation on saved tensors allowed": torch.autograd.graph.allow_mutation_on_saved_tensors,
}


@both_arithmetics
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_mode_around_forward_and_backward(arithmetic: str, mode: str, training: bool) -> None:
    network, inputs = stack(arithmetic, training=training)
    plain = gradients_of(network, lambda: loss_of(network, inputs).backward())

    def run() -> None:
        with MODES[mode]():
            loss_of(network, inputs).backward()

    assert_agree(network, run, arithmetic)
    found = gradients_of(network, run)
    assert all(torch.equal(found[n], plain[n]) for n in plain)


@both_arithmetics
def test_saved_tensor_hooks_around_the_forward_alone(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)

    def run() -> None:
        with torch.autograd.graph.save_on_cpu():
            loss = loss_of(network, inputs)
        loss.backward()

    assert_agree(network, run, arithmetic)


@both_arithmetics
def test_anomaly_detection_finds_what_is_not_a_number(arithmetic: str) -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - x).sqrt()  # its derivative is infinity times zero

    network, inputs = stack(arithmetic)
    network.blocks[1].dropout = Root()
    nan = pytest.raises(RuntimeError, match="returned nan values")
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly(), nan:
        loss_of(network, inputs).backward()


@both_arithmetics
def test_inference_mode_and_no_grad_compute_what_training_does(arithmetic: str) -> None:
    network, inputs = stack(arithmetic, training=False)
    expected = network(*inputs)
    with torch.no_grad():
        assert torch.equal(network(*inputs), expected)
    with torch.inference_mode():
        assert torch.equal(network(*inputs), expected)
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_first_call_of_a_kind_may_be_in_inference_mode(arithmetic: str, training: bool) -> None:
    network, inputs = stack(arithmetic, training=training)

    def output(mode: contextlib.AbstractContextManager[Any]) -> torch.Tensor:
        torch.manual_seed(0)
        with mode:
            return copy.deepcopy(network)(*inputs)  # a copy has made no call yet

    assert torch.equal(output(torch.inference_mode()), output(torch.no_grad()))


@pytest.mark.parametrize("inside", ["inputs", "rewiring"])
def test_a_network_that_was_rewired_in_inference_mode_is_trained_outside(inside: str) -> None:
    network, x = residual_stack()[0], torch.randn(3, 5, 8)
    with torch.inference_mode():
        example = torch.randn(3, 5, 8)
    with torch.inference_mode(inside == "rewiring"):
        rs.rewire(network, example_inputs=example, arithmetic="exact")
    rs.set_coefficients(network, *COEFFICIENTS["exact"])
    assert_agree(network, lambda: loss_of(network, (x,)).backward(), "exact")


def test_a_network_that_was_made_in_inference_mode_is_rewired_for_inference() -> None:
    with torch.inference_mode():
        network, inputs = residual_stack()
        expected = network(*inputs)
        rs.rewire(network, example_inputs=inputs)
        rs.set_coefficients(network, 1.0, 0.0)
        assert torch.equal(network(*inputs), expected)


@both_arithmetics
@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_kernels_chosen_around_the_forward_alone(arithmetic: str, backend: SDPBackend) -> None:
    network, inputs = rewired("timm vit", arithmetic)
    network.eval()

    def run() -> None:
        with sdpa_kernel(backend):
            loss = loss_of(network, inputs)
        loss.backward()

    assert_agree(network, run, arithmetic)


class Strided(nn.Module):
    """Its branch comes back in another layout than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x.contiguous(memory_format=torch.channels_last))


@both_arithmetics
def test_branches_that_change_the_layout(arithmetic: str) -> None:
    network, inputs = rewired_from(
        lambda: nn.Sequential(*(Strided() for _ in range(4))), arithmetic, torch.randn(1, 4, 6, 1)
    )
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
