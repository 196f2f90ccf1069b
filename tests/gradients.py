"""One training step, and the comparison of two of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


@dataclass
class StepResult:
    """What one forward and backward gave."""

    output: torch.Tensor
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    random_state: torch.Tensor


def call(network: nn.Module, inputs: Any) -> torch.Tensor:
    """The network's first output."""
    output = network(**inputs) if isinstance(inputs, Mapping) else network(*inputs)
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor))


def step(network: nn.Module, inputs: Any, *, seed: int = 0, inside: Any = None) -> StepResult:
    """Forward and backward from a given random state and from the same buffers, which are put back."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.zero_grad()
    torch.manual_seed(seed)
    with inside or contextlib.nullcontext():
        output = call(network, inputs)
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
        (output.double() * weights).sum().backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    after = {name: buffer.clone() for name, buffer in network.named_buffers()}
    for name, buffer in network.named_buffers():
        buffer.copy_(before[name])
    return StepResult(output.detach(), gradients, after, torch.get_rng_state())


def relative_error(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """``||actual - expected|| / ||expected||`` over all parameters."""
    assert actual.keys() == expected.keys()
    difference = sum(float((actual[n].double() - expected[n].double()).square().sum()) for n in expected)
    norm = sum(float(expected[n].double().square().sum()) for n in expected)
    return (difference / norm) ** 0.5


def assert_identical(actual: StepResult, expected: StepResult) -> None:
    """Two steps that are the same bit for bit: outputs, gradients, buffers and random state."""
    assert torch.equal(actual.output, expected.output)
    assert actual.gradients.keys() == expected.gradients.keys()
    different = [n for n in expected.gradients if not torch.equal(actual.gradients[n], expected.gradients[n])]
    assert different == []
    assert_same_state(actual, expected)


def assert_same_state(actual: StepResult, expected: StepResult) -> None:
    """Two steps that left the same buffers and the same random state behind."""
    changed = [n for n in expected.buffers if not torch.equal(actual.buffers[n], expected.buffers[n])]
    assert changed == []
    assert torch.equal(actual.random_state, expected.random_state)
