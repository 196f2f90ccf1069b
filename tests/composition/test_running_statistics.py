"""Buffers that a segment's forward changes move once a step, whatever they did in the first one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from tests.composition.agreement import assert_agree, both_arithmetics, loss_of, rewired, rewired_from


class Normed(nn.Module):
    """Its batch norm sees nothing but zeros until the convolution is trained."""

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, momentum=momentum)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.norm(self.conv(x))


def assert_buffers_agree(network: nn.Module, train: Callable[[], None], arithmetic: str) -> None:
    """Training leaves the same gradients and the same buffers, reversible and stored."""
    state = copy.deepcopy(network.state_dict())
    after: list[dict[str, torch.Tensor]] = []

    def run() -> None:
        network.load_state_dict(state)
        train()
        after.append({n: b.clone() for n, b in network.named_buffers()})

    assert_agree(network, run, arithmetic)
    assert [n for n in after[0] if not torch.equal(after[0][n], after[1][n])] == []
    assert any(not torch.equal(after[0][n], state[n]) for n in after[0])


@both_arithmetics
def test_statistics_that_do_not_move_in_the_first_step_move_once_in_the_next_ones(arithmetic: str) -> None:
    network, inputs = rewired_from(
        lambda: nn.Sequential(Normed(), Normed()), arithmetic, torch.randn(3, 4, 6, 6)
    )

    def train() -> None:
        for block in network:
            nn.init.zeros_(block.conv.weight)
        loss_of(network, inputs).backward()
        torch.manual_seed(0)
        for block in network:
            nn.init.normal_(block.conv.weight)
        loss_of(network, inputs).backward()

    assert_buffers_agree(network, train, arithmetic)


@both_arithmetics
def test_a_momentum_that_is_changed_later(arithmetic: str) -> None:
    network, inputs = rewired_from(
        lambda: nn.Sequential(Normed(0.0), Normed(0.0)), arithmetic, torch.randn(3, 4, 6, 6)
    )

    def train() -> None:
        torch.manual_seed(0)
        for momentum in (0.0, 0.1, 0.5):
            for block in network:
                nn.init.normal_(block.conv.weight)
                block.norm.momentum = momentum
            loss_of(network, inputs).backward()

    assert_buffers_agree(network, train, arithmetic)


@both_arithmetics
def test_batch_norms_in_evaluation_mode_in_a_network_that_trains(arithmetic: str) -> None:
    network, inputs = rewired("timm resnet", arithmetic)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms[::2]:
        norm.eval()

    def train() -> None:
        for _ in range(2):
            loss_of(network, inputs).backward()

    assert_buffers_agree(network, train, arithmetic)
    assert all(int(norm.num_batches_tracked) == 0 for norm in norms[::2])
