"""Fill fresh memory with large numbers, so that a kernel that reads what nobody wrote gives itself away.

Weight gradients of bfloat16 3d convolutions on the CPU (torch 2.15) are such kernels. They repeat as long as
the allocator hands out the same memory; PyTorch's own filling of empty tensors does not reach it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from collections.abc import Iterator

import torch
from torch import nn

_M_PERTURB = -6
"""The option of glibc's mallopt(3) that fills memory as it is handed out."""

_FILLS = (0x01, 0x80)
"""Their complements fill: 0xFE.. is about -1.7e38 in float32 and in bfloat16, 0x7F.. about 3.4e38."""


@contextlib.contextmanager
def unwritten_memory_filled(network: nn.Module, number: int) -> Iterator[None]:
    """Within it, memory on the CPU that nothing was written to holds large numbers, or NaN.

    Args:
        network: memory of its tensors' sizes is filled; all other memory only where the C library is glibc.
        number: of the repetition; the numbers change sign from one to the next.
    """
    for parameter in network.parameters():
        if parameter.is_floating_point():
            junk = [torch.full_like(parameter, math.nan) for _ in range(4)]
            del junk
    option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if option is None:
        yield
        return
    option(_M_PERTURB, _FILLS[number % len(_FILLS)])
    try:
        yield
    finally:
        option(_M_PERTURB, 0)
