"""What FSDP2 cannot do to a chain without wrong gradients ends in an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.distributed.networks import FLOAT, backward, mean_square, network, share, tap_only
from tests.distributed.processes import TwoProcesses
from tests.distributed.sharded import shard
from tests.models import residual_stack


def parts_of_blocks(rank: int, network: nn.Module) -> None:
    from torch.distributed.fsdp import fully_shard

    for block in network.blocks:
        fully_shard(block.linear)
    backward(shard(network), share(rank), rank)


def parts_of_blocks_behind_a_first_step(rank: int, network: nn.Module) -> None:
    from torch.distributed.fsdp import fully_shard

    backward(network, share(rank), rank)
    for block in network.blocks:
        fully_shard(block.linear)
    backward(network, share(rank), rank)


def before_it_is_rewired(rank: int, network: nn.Module) -> None:
    plain, inputs = residual_stack()
    rs.rewire(shard(plain, "root"), example_inputs=inputs)


def before_it_is_saved(rank: int, network: nn.Module) -> None:
    rs.save(shard(network), "never-written")


def with_another_precision_between_blocks(rank: int, network: nn.Module) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    backward(shard(network, mp_policy=policy), share(rank), rank)


def in_containers_behind_a_tap(rank: int, network: nn.Module) -> None:
    from torch.distributed.fsdp import fully_shard

    for container in (network.first, network.second):
        fully_shard(container)
    backward(shard(network, "root"), share(rank), rank, loss=tap_only)


def in_flat_parameters(rank: int, network: nn.Module) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    cpu = torch.device("cpu")
    backward(FullyShardedDataParallel(network, use_orig_params=False, device_id=cpu), share(rank), rank)


def and_changed_before_backward(rank: int, network: nn.Module, reshard: bool = True) -> None:
    loss = mean_square(shard(network, reshard_after_forward=reshard), share(rank))
    with torch.no_grad():
        for parameter in network.blocks.parameters():
            (parameter.to_local() if reshard else parameter).mul_(1.5)
    loss.backward()


def and_changed_before_backward_while_whole(rank: int, network: nn.Module) -> None:
    and_changed_before_backward(rank, network, reshard=False)


REFUSED: dict[Callable[[int, nn.Module], None], str] = {
    parts_of_blocks: "UnsupportedModelError: a part of block 'blocks.0' is sharded on its own.",
    parts_of_blocks_behind_a_first_step: "UnsupportedModelError: a part of block 'blocks.0' is sharded",
    before_it_is_rewired: "UnsupportedModelError: FSDPStack is sharded already.",
    before_it_is_saved: "UnsupportedModelError: FSDPStack is sharded: no process has all of its weights.",
    with_another_precision_between_blocks: "ChainBrokenError: block 'blocks.1' was not handed what the block",
    in_containers_behind_a_tap: "ChainBrokenError: a tensor that the forward used is no longer in memory.",
    in_flat_parameters: "shows the parameters that it shards only with use_orig_params=True",
    and_changed_before_backward: "ChainBrokenError: recomputing a segment of 'blocks' gave other bits",
    and_changed_before_backward_while_whole: "ChainBrokenError: a parameter or an argument was changed",
}


def refusal(rank: int, network: nn.Module, sharded: Callable[[int, nn.Module], None]) -> str:
    """The error that a way of sharding ends in."""
    try:
        sharded(rank, network)
    except rs.RevsurgeonError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize("sharded", REFUSED, ids=lambda sharded: sharded.__name__)
def test_a_network_is_not_sharded(two_processes: TwoProcesses, sharded: Callable[..., None]) -> None:
    kind = "staged" if sharded is in_containers_behind_a_tap else "stack"
    for found in two_processes(refusal, network(kind), sharded):
        assert REFUSED[sharded] in found


@pytest.mark.xfail(strict=True, reason="FSDP2 gathers the new values under the version of the old ones")
def test_changed_weights_are_noticed_in_float_arithmetic_too(two_processes: TwoProcesses) -> None:
    for found in two_processes(refusal, network(way=FLOAT), and_changed_before_backward):
        assert "ChainBrokenError" in found
