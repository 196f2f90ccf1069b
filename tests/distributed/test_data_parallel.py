"""DDP: two processes with half a batch each find the gradients of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.networks import (
    backward,
    batch,
    different,
    gradients,
    mean_of_halves,
    mean_square,
    network,
    share,
)
from tests.distributed.processes import TwoProcesses

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "static graph": {"static_graph": True},
    "gradients as views of buckets": {"gradient_as_bucket_view": True},
    "unused parameters": {"find_unused_parameters": True},
}


def parallel_gradients(rank: int, replica: nn.Module, setting: str) -> dict[str, torch.Tensor]:
    parallel = DistributedDataParallel(replica, **SETTINGS[setting])
    for _ in range(2):  # a static graph is learned in the first pass and relied on in the second
        replica.zero_grad()
        backward(parallel, share(rank), rank)
    return gradients(replica)


@pytest.mark.parametrize("setting", SETTINGS)
def test_ddp_finds_the_gradients_of_one_process_bit_for_bit(
    two_processes: TwoProcesses, setting: str
) -> None:
    replica = network()
    if setting == "unused parameters":
        replica.unused = nn.Linear(2, 2)
    expected = mean_of_halves(replica, batch())
    for found in two_processes(parallel_gradients, replica, setting):
        assert different(found, expected) == []


def accumulated_gradients(rank: int, replica: nn.Module, static_graph: bool) -> dict[str, torch.Tensor]:
    parallel = DistributedDataParallel(replica, static_graph=static_graph)
    backward(parallel, share(rank), rank)
    replica.zero_grad()
    torch.manual_seed(rank)
    first, second = share(rank).chunk(2)
    with parallel.no_sync():
        (mean_square(parallel, first) / 2).backward()
    (mean_square(parallel, second) / 2).backward()
    return gradients(replica)


@pytest.mark.parametrize("static_graph", [False, True])
def test_ddp_accumulates_gradients_with_no_sync(two_processes: TwoProcesses, static_graph: bool) -> None:
    expected = mean_of_halves(network(), batch(), parts=2)
    for found in two_processes(accumulated_gradients, network(), static_graph):
        assert different(found, expected) == []
