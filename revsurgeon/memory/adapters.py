"""Low-rank adapters (LoRA, Hu et al., ICLR 2022) on the linear layers of some blocks, to plan with.

The layout is that of the usual libraries: the layer stays, frozen, and two thin ones run beside it. It is
here so that planning needs no other package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Adapted(nn.Module):
    """A frozen linear layer with an update of low rank."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        options: Any = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
        self.base = base
        self.down = nn.Linear(base.in_features, rank, **options)
        self.up = nn.Linear(rank, base.out_features, **options)
        nn.init.zeros_(self.up.weight)  # at first it changes nothing

    @property
    def weight(self) -> torch.Tensor:
        """The frozen layer's; some networks read its dtype."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output and the update."""
        result: torch.Tensor = self.base(x) + self.up(self.down(x))
        return result


def add_adapters(network: nn.Module, blocks: Sequence[str], rank: int) -> int:
    """Freeze a network, and put adapters on every linear layer inside some of its blocks, which are trained.

    Args:
        network: changed in place.
        blocks: paths.
        rank: of the updates.

    Returns:
        How many adapters there are.
    """
    network.requires_grad_(False)
    count = 0
    for path in dict.fromkeys(blocks):
        for module in list(network.get_submodule(path).modules()):
            if isinstance(module, Adapted):
                continue
            for name, child in list(module._modules.items()):
                # Not its subclasses: nn.MultiheadAttention reads the weight of its own past the call.
                if type(child) is nn.Linear:
                    module._modules[name] = Adapted(child, rank)
                    count += 1
    return count
