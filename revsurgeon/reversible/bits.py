"""Pack small integers into exactly b bits an element."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integers from [0, 2**bits) into bytes.

    The bits are split into groups of 8, 4, 2 and 1. A group of w bits is packed 8 / w elements to a byte: the
    first n * w / 8 elements in the lowest bits of the bytes, the next ones above them. So every operation
    is on contiguous memory.

    Args:
        values: contiguous, uint8 or int32, of any shape, with n elements.
        bits: from 0 to 16.

    Returns:
        uint8 of ceil(n / 8) * bits elements: eight values take `bits` bytes.
    """
    flat = _padded(values.reshape(-1))
    parts = []
    for width, shift in _groups(bits):
        group = (flat >> shift if shift else flat).to(torch.uint8)
        if width < bits:
            group = group & (2**width - 1)
        planes = group.view(8 // width, -1)
        packed = planes[-1]
        for place in reversed(range(8 // width - 1)):
            packed = planes[place] | (packed << width)
        parts.append(packed)
    if not parts:
        return flat.new_empty(0, dtype=torch.uint8)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def unpack_bits(packed: torch.Tensor, bits: int, shape: torch.Size) -> torch.Tensor:
    """The values that `pack_bits` packed, contiguous, in the given shape: uint8, or int32 above 8 bits."""
    dtype = torch.int32 if bits > 8 else torch.uint8
    count = shape.numel()
    padded = -(-count // 8) * 8
    make = torch.empty if bits else torch.zeros  # the first group writes, the others add to it
    result = make(padded, dtype=dtype, device=packed.device)
    position = 0
    for width, shift in _groups(bits):
        part = packed[position : position + padded * width // 8]
        position += len(part)
        for place, plane in enumerate(result.view(8 // width, -1)):
            value = part >> (width * place) if place else part
            if width * (place + 1) < 8:
                value = value & (2**width - 1)
            if shift:
                plane |= value.to(dtype) << shift
            else:
                plane.copy_(value)
    return result[:count].view(shape)


def _groups(bits: int) -> Iterator[tuple[int, int]]:
    """Width and lowest bit of every group: 7 bits are 4, 2 and 1."""
    shift = 0
    for width in (8, 8, 4, 2, 1):
        if bits - shift >= width:
            yield width, shift
            shift += width


def _padded(flat: torch.Tensor) -> torch.Tensor:
    """As many elements as fill whole groups of eight, zeros at the end."""
    missing = -len(flat) % 8
    return torch.cat([flat, flat.new_zeros(missing)]) if missing else flat
