"""Two processes with half a batch each give the gradients of one process with the whole batch."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import revsurgeon as rs
from tests.models import residual_stack, seeded


def _network() -> tuple[nn.Module, torch.Tensor]:
    network, _ = seeded(lambda: residual_stack(4))
    inputs = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    rs.rewire(network, example_inputs=inputs, arithmetic="exact").train()
    return network, inputs


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "static graph": {"static_graph": True},
    "accumulation with no_sync": {"accumulate": True},
    "unused parameters": {"find_unused_parameters": True, "unused": True},
}


def _run(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for name, options in SETTINGS.items():
        gradients = _gradients(rank, dict(options))
        if rank == 0:
            torch.save(gradients, Path(folder) / name)
    dist.destroy_process_group()


def _gradients(rank: int, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    network, inputs = _network()
    unused = options.pop("unused", False)
    if unused:
        network.unused = nn.Linear(2, 2)
    accumulate = options.pop("accumulate", False)
    parallel = DistributedDataParallel(network, **options)
    mine = inputs.chunk(2)[rank]
    if accumulate:
        with parallel.no_sync():
            parallel(mine[:1]).square().mean().div(2).backward()
        parallel(mine[1:]).square().mean().div(2).backward()
    else:
        for _ in range(2 if "static_graph" in options else 1):
            network.zero_grad()
            parallel(mine).square().mean().backward()
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, a file a setting."""
    folder = tmp_path_factory.mktemp("gradients")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_run, (port, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("setting", SETTINGS)
def test_ddp_gives_the_joined_batchs_gradients(folder: Path, setting: str) -> None:
    found = torch.load(folder / setting)
    network, inputs = _network()
    network(inputs).square().mean().backward()
    for name, parameter in network.named_parameters():
        # The two sums are added in another order: a few roundings apart.
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
