"""How long a step takes, by the two things that bound it: operations computed and bytes moved (a roofline).

Each operator takes the longer of the two times that its flops and its bytes would take on a machine. Only
ratios of such times are shown, so it is the machine's balance that counts, flops per byte, and not its speed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import flop_counter


@dataclass(frozen=True)
class Machine:
    """What a device does in a second.

    Attributes:
        flops: of matrix products, by the size of an element in bytes.
        bandwidth: bytes to and from its memory.
        overhead: seconds that an operator takes at least.
    """

    flops: dict[int, float]
    bandwidth: float
    overhead: float


MACHINES = {
    # NVIDIA's data sheet of the A100 80 GB SXM: 312 Tflop/s in bf16, 156 in TF32, 2 TB/s; about 60 % of
    # these are reached. PyTorch's default is no TF32 (19.5 Tflop/s); planning assumes that it is switched on.
    "cuda": Machine({2: 187e12, 4: 94e12, 8: 12e12}, 1.2e12, 4e-6),
    # One core of a server CPU with AVX2: assumed, of the order that such a core reaches.
    "cpu": Machine({2: 30e9, 4: 60e9, 8: 30e9}, 8e9, 6e-6),
}
"""By device type."""

_MOVES_NOTHING = {"detach", "alias", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}


@dataclass
class Work:
    """Flops and bytes of a step's operators.

    Attributes:
        flops: in all.
        seconds: by device type, on the machines of `MACHINES`.
    """

    flops: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(MACHINES, 0.0))

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count one operator."""
        packet = func.overloadpacket
        if func.is_view or packet.__name__ in _MOVES_NOTHING:
            return
        tensors = _tensors((args, kwargs, result))
        moved = sum(t.numel() * t.element_size() for t in tensors)
        flops = _flops(packet, args, kwargs, result)
        self.flops += flops
        width = min((t.element_size() for t in tensors if t.is_floating_point()), default=4)
        for name, machine in MACHINES.items():
            rate = machine.flops.get(width, machine.flops[4])
            self.seconds[name] += max(flops / rate, moved / machine.bandwidth, machine.overhead)


def _tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of nested lists; quicker than torch's general walk, which would take half of the time."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        return []
    return [tensor for part in tree for tensor in _tensors(part)]


def _flops(packet: Any, args: Any, kwargs: Any, result: Any) -> int:
    count = flop_counter.flop_registry.get(packet)
    if count is not None:
        return int(count(*args, **kwargs, out_val=result))
    name = packet.__name__
    if "scaled_dot_product" in name and len(args) > 2:
        backward = "backward" in name
        query, key, value = args[1:4] if backward else args[:3]
        # Two products of the sizes of queries and keys; the backward pass has five.
        pairs = query.shape[:-1].numel() * key.shape[-2]
        return pairs * (query.shape[-1] + value.shape[-1]) * (5 if backward else 2)
    return 0
