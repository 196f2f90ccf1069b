"""FSDP2 as people apply it, and the gradients that come of it.

torch.distributed.fsdp is imported where it is used: that takes seconds, and only the two processes need it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import revsurgeon as rs
from tests.distributed.networks import Loss, backward, gradients, mean_square, share

WRAPS = ("blocks", "pairs of blocks", "root")
"""What `fully_shard` is called on, besides the root."""


def shard(network: nn.Module, wrap: str = "blocks", **options: Any) -> nn.Module:
    """Call `fully_shard` as people do: bottom up, and last on the root."""
    from torch.distributed.fsdp import fully_shard

    paths = [path for chain in rs.chains(network) for path in dict.fromkeys(chain.blocks)]
    blocks = [network.get_submodule(path) for path in paths]
    if wrap == "blocks":
        for block in blocks:
            fully_shard(block, **options)
    elif wrap == "pairs of blocks":
        for pair in zip(blocks[::2], blocks[1::2], strict=True):
            fully_shard(list(pair), **options)
    fully_shard(network, **options)
    return network


def reshard_option(reshard: bool | None) -> dict[str, Any]:
    return {} if reshard is None else {"reshard_after_forward": reshard}


def sharded_gradients(
    rank: int, network: nn.Module, kind: str, wrap: str, reshard: bool | None, loss: Loss = mean_square
) -> dict[str, torch.Tensor]:
    shard(network, wrap, **reshard_option(reshard))
    for _ in range(2):  # what is sharded anew after the first step is gathered for the second
        network.zero_grad()
        backward(network, share(rank, kind), rank, loss=loss)
    return gradients(network)
