"""Under every policy of FSDP2 the reversible gradients are the stored ones', and nothing more is kept."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.distributed.networks import backward, different, gradients, mean_square, network, share, whole
from tests.distributed.processes import TwoProcesses
from tests.distributed.sharded import shard
from tests.gradients import step
from tests.models import NETWORKS, Inputs, seeded


def both_ways(rank: int, network: nn.Module, options: dict[str, Any], autocast: bool) -> list[list[str]]:
    """Names of the gradients that differ between reversible and stored, in one sharded network."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    if "low precision" in options:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        options = {"mp_policy": policy}
    elif "offload" in options:
        options = {"offload_policy": CPUOffloadPolicy(pin_memory=False)}
    elif "mesh" in options:
        options = {"mesh": init_device_mesh("cpu", options["mesh"], mesh_dim_names=("replicate", "shard"))}
    elif "compiled" in options:
        rs.compile_segments(network, backend=options.pop("compiled"))
    shard(network, **options)
    found = []
    for stored in (False, True):
        network.zero_grad()
        way = rs.stored_activations(network) if stored else contextlib.nullcontext()
        with way, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            backward(network, share(rank), rank)
        found.append(gradients(network))
    assert len(found[0]) == 20
    return different(*found)


POLICIES: dict[str, tuple[dict[str, Any], bool]] = {
    "parameters gathered in bfloat16": ({"low precision": True}, False),
    "autocast to bfloat16": ({}, True),
    "compiled segments": ({"compiled": "aot_eager"}, False),
    "parameters kept on the CPU": ({"offload": True}, False),
    "sharded in one dimension of a mesh": ({"mesh": (1, 2)}, False),
    "replicated in one dimension of a mesh": ({"mesh": (2, 1)}, False),
}


@pytest.mark.parametrize(
    "policy",
    [pytest.param(p, marks=pytest.mark.slow) if p == "compiled segments" else p for p in POLICIES],
)
def test_exact_gradients_are_those_of_stored_activations_with(
    two_processes: TwoProcesses, policy: str
) -> None:
    assert two_processes(both_ways, network(), *POLICIES[policy]) == [[], []]


def both_ways_in_fsdp1(rank: int, network: nn.Module, strategy: str) -> list[list[str]]:
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    parallel = FullyShardedDataParallel(
        network,
        auto_wrap_policy=ModuleWrapPolicy({type(network.blocks[0])}),
        sharding_strategy=ShardingStrategy[strategy],
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )
    found = []
    for stored in (False, True):
        parallel.zero_grad()
        with rs.stored_activations(parallel) if stored else contextlib.nullcontext():
            backward(parallel, share(rank), rank)
        with FullyShardedDataParallel.summon_full_params(parallel, with_grads=True):
            found.append(gradients(parallel))
    assert len(found[0]) == 20
    return different(*found)


@pytest.mark.parametrize("strategy", ["FULL_SHARD", "SHARD_GRAD_OP"])
def test_exact_gradients_are_those_of_stored_activations_with_the_old_fsdp(
    two_processes: TwoProcesses, strategy: str
) -> None:
    assert two_processes(both_ways_in_fsdp1, network(), strategy) == [[], []]


def both_ways_of_any(rank: int, network: nn.Module, inputs: Inputs) -> list[list[str]]:
    shard(network)
    steps = [
        step(network, inputs, seed=rank, inside=way)
        for way in (contextlib.nullcontext(), rs.stored_activations(network))
    ]
    assert steps[0].gradients
    return different(*({n: whole(g) for n, g in found.gradients.items()} for found in steps))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_gradients_of_a_sharded_network_are_those_of_stored_activations(
    two_processes: TwoProcesses, name: str
) -> None:
    network, inputs = seeded(NETWORKS[name])
    rs.rewire(network, example_inputs=inputs, arithmetic="exact").train()
    assert two_processes(both_ways_of_any, network, inputs) == [[], []]


def memory(rank: int, network: nn.Module, sharded: bool) -> tuple[int, int]:
    """Bytes of the blocks' gathered parameters between forward and backward, and bytes saved for backward."""
    seen: list[torch.Tensor] = []
    saved: dict[int, int] = {}
    if sharded:
        shard(network, reshard_after_forward=True)
    for block in network.blocks:
        block.register_forward_pre_hook(lambda block, _: seen.extend(block.parameters()))

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = mean_square(network, share(rank))
    between = sum(p.untyped_storage().size() for p in seen)
    loss.backward()
    return between, sum(saved.values())


def test_nothing_holds_a_blocks_parameters_between_forward_and_backward(two_processes: TwoProcesses) -> None:
    parameters, saved = memory(0, network(), sharded=False)
    assert parameters == sum(p.numel() * p.itemsize for p in network().blocks.parameters())
    for found in two_processes(memory, network(), sharded=True):
        assert found == (0, saved)
