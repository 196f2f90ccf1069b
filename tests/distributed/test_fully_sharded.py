"""FSDP2 (`fully_shard`): two processes with half a batch each find the gradients of one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.distributed.networks import (
    EXACT,
    FLOAT,
    backward,
    batch,
    different,
    gradients,
    mean_of_halves,
    mean_square,
    network,
    share,
    tap_only,
    whole,
)
from tests.distributed.processes import TwoProcesses
from tests.distributed.sharded import WRAPS, reshard_option, shard, sharded_gradients
from tests.gradients import relative_error

WAYS = pytest.mark.parametrize("way", [FLOAT, EXACT], ids=["float", "exact"])
RESHARD = pytest.mark.parametrize("reshard", [None, True, False], ids="reshard_after_forward={}".format)


@WAYS
@RESHARD
@pytest.mark.parametrize("wrap", WRAPS)
def test_fsdp_finds_the_gradients_of_one_process_bit_for_bit(
    two_processes: TwoProcesses, way: tuple[str, str], reshard: bool | None, wrap: str
) -> None:
    expected = mean_of_halves(network(way=way), batch())
    for found in two_processes(sharded_gradients, network(way=way), "stack", wrap, reshard):
        assert different(found, expected) == []


@pytest.mark.parametrize("kind", ["repeated", "tapped", pytest.param("vit", marks=pytest.mark.slow)])
def test_fsdp_finds_the_gradients_of_one_process_bit_for_bit_also_with(
    two_processes: TwoProcesses, kind: str
) -> None:
    expected = mean_of_halves(network(kind), batch(kind))
    for found in two_processes(sharded_gradients, network(kind), kind, "blocks", True):
        assert different(found, expected) == []


@WAYS
def test_fsdp_finds_the_joined_batchs_gradients_but_for_the_order_of_sums(
    two_processes: TwoProcesses, way: tuple[str, str]
) -> None:
    kind = "stack without dropout"
    alone = network(kind, way)
    mean_square(alone, batch(kind)).backward()
    # A gradient is a sum over 20 rows (4 samples of 5). One process adds them up as they come, two processes
    # add two sums of 10: at most 20 rounding errors in each of the 6 layers that lie in a row, either way. In
    # exact arithmetic a stream is rounded to its grid besides, which is finer than float32.
    (chain,) = rs.chains(alone)
    assert 2.0**-chain.grid_bits <= torch.finfo(torch.float32).eps
    bound = 20 * 6 * torch.finfo(torch.float32).eps
    for found in two_processes(sharded_gradients, network(kind, way), kind, "blocks", True):
        assert relative_error(found, gradients(alone)) < bound


def accumulated(rank: int, network: nn.Module, wrap: str, keep: bool) -> dict[str, torch.Tensor]:
    shard(network, wrap, reshard_after_forward=True)
    torch.manual_seed(rank)
    first, second = share(rank).chunk(2)
    network.set_requires_gradient_sync(False)
    network.set_reshard_after_backward(not keep)
    (mean_square(network, first) / 2).backward()
    network.set_requires_gradient_sync(True)
    network.set_reshard_after_backward(True)
    (mean_square(network, second) / 2).backward()
    return gradients(network)


@pytest.mark.parametrize("keep", [False, True], ids=["sharded anew in between", "kept whole in between"])
def test_fsdp_accumulates_gradients_without_communication(two_processes: TwoProcesses, keep: bool) -> None:
    expected = mean_of_halves(network(), batch(), parts=2)
    for found in two_processes(accumulated, network(), "blocks", keep):
        assert different(found, expected) == []


@WAYS
@RESHARD
def test_blocks_behind_a_tap_are_gathered_when_only_the_tap_is_in_the_loss(
    two_processes: TwoProcesses, way: tuple[str, str], reshard: bool | None
) -> None:
    expected = mean_of_halves(network("tapped", way), batch("tapped"), loss=tap_only)
    assert {name.split(".")[0] for name in expected} == {"stem", "blocks"}
    for found in two_processes(
        sharded_gradients, network("tapped", way), "tapped", "blocks", reshard, tap_only
    ):
        assert different(found, expected) == []


def twice_through_one_graph(rank: int, network: nn.Module) -> dict[str, torch.Tensor]:
    shard(network, reshard_after_forward=True)
    torch.manual_seed(rank)
    loss = mean_square(network, share(rank))
    loss.backward(retain_graph=True)
    network.zero_grad()
    loss.backward()
    return gradients(network)


def two_forwards_before_one_backward(rank: int, network: nn.Module) -> dict[str, torch.Tensor]:
    shard(network, reshard_after_forward=True)
    torch.manual_seed(rank)
    loss = mean_square(network, share(rank)) / 2
    (loss + mean_square(network, share(rank)) / 2).backward()
    return gradients(network)


def test_a_graph_is_gone_through_twice(two_processes: TwoProcesses) -> None:
    expected = mean_of_halves(network(), batch())
    for found in two_processes(twice_through_one_graph, network()):
        assert different(found, expected) == []


def test_two_forwards_come_before_one_backward(two_processes: TwoProcesses) -> None:
    kind = "stack without dropout"
    expected = mean_of_halves(network(kind), batch())  # twice half of the same
    for found in two_processes(two_forwards_before_one_backward, network(kind)):
        assert different(found, expected) == []


def frozen(network: nn.Module) -> nn.Module:
    for module in (network.stem, network.blocks[0], network.blocks[2].norm):
        module.requires_grad_(False)
    return network


def test_frozen_parameters_stay_without_a_gradient(two_processes: TwoProcesses) -> None:
    expected = mean_of_halves(frozen(network()), batch())
    assert len(expected) == 20 - 8
    for found in two_processes(sharded_gradients, frozen(network()), "stack", "blocks", True):
        assert different(found, expected) == []


def trained(rank: int, network: nn.Module, reshard: bool | None) -> dict[str, torch.Tensor]:
    shard(network, "blocks", **reshard_option(reshard))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = rs.CoefficientSchedule(network, total_steps=3, end=(0.3, 0.7))
    for _ in range(3):
        optimizer.zero_grad()
        backward(network, share(rank), rank)
        optimizer.step()
        schedule.step()
    return {name: whole(p) for name, p in network.named_parameters()}


@RESHARD
def test_three_steps_of_training_give_the_parameters_of_one_process(
    two_processes: TwoProcesses, reshard: bool | None
) -> None:
    alone = network()
    optimizer = torch.optim.AdamW(alone.parameters(), lr=0.01)
    schedule = rs.CoefficientSchedule(alone, total_steps=3, end=(0.3, 0.7))
    for _ in range(3):
        found = mean_of_halves(alone, batch())
        for name, parameter in alone.named_parameters():
            parameter.grad = found[name]
        optimizer.step()
        schedule.step()
    expected = {name: p.detach() for name, p in alone.named_parameters()}
    for found in two_processes(trained, network(), reshard):
        assert different(found, expected) == []


def clipped(rank: int, network: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    shard(network)
    backward(network, share(rank), rank)
    norm = nn.utils.clip_grad_norm_(network.parameters(), 0.01)
    return whole(norm), gradients(network)


def test_gradients_are_clipped_by_the_norm_of_all_shards(two_processes: TwoProcesses) -> None:
    alone = network()
    found = mean_of_halves(alone, batch())
    for name, parameter in alone.named_parameters():
        parameter.grad = found[name]
    norm = nn.utils.clip_grad_norm_(alone.parameters(), 0.01)
    # The squares are added shard by shard: no more rounding errors than there are parameters.
    bound = sum(p.numel() for p in alone.parameters()) * torch.finfo(torch.float32).eps
    for found_norm, found in two_processes(clipped, network()):
        assert abs(float(found_norm / norm) - 1) < bound
        assert relative_error(found, gradients(alone)) < bound
