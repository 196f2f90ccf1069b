"""Pack small integers into exactly b bits an element."""

from __future__ import annotations

import torch


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integers from [0, 2**bits) into bytes.

    Args:
        values: contiguous, integer-valued, of any dtype and shape, with n elements.
        bits: from 0 to 16.

    Returns:
        uint8 of ceil(n / 8) * bits elements: eight values take `bits` bytes.
    """
    flat = values.reshape(-1)
    if bits == 0:
        return flat.new_empty(0, dtype=torch.uint8)
    if bits > 8:
        whole = flat.to(torch.int32)
        return torch.cat([pack_bits(whole & 0xFF, 8), pack_bits(whole >> 8, bits - 8)])
    octets = _padded(flat.to(torch.uint8))
    if bits == 8:
        return octets.reshape(-1)
    word = torch.zeros(len(octets), dtype=torch.int64, device=octets.device)
    for place in range(8):
        word |= octets[:, place].to(torch.int64) << (bits * place)
    # A copy: a view of the first bytes would keep all eight.
    packed = octets.new_empty(len(word), bits)
    return packed.copy_(word.view(torch.uint8).view(-1, 8)[:, :bits]).view(-1)


def unpack_bits(packed: torch.Tensor, bits: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """The values that `pack_bits` packed, contiguous, in the given shape and dtype."""
    if bits == 0:
        return torch.zeros(shape, dtype=dtype, device=packed.device)
    count = shape.numel()
    if bits > 8:
        split = -(-count // 8) * 8
        low = unpack_bits(packed[:split], 8, shape, torch.int32)
        return (low | unpack_bits(packed[split:], bits - 8, shape, torch.int32) << 8).to(dtype)
    if bits == 8:
        return packed[:count].to(dtype).view(shape)
    bytes_ = packed.view(-1, bits)
    word = torch.zeros(len(bytes_), 8, dtype=torch.uint8, device=packed.device)
    word[:, :bits] = bytes_
    word = word.view(torch.int64)
    places = torch.arange(0, 8 * bits, bits, device=packed.device)
    return ((word >> places) & (2**bits - 1)).reshape(-1)[:count].to(dtype).view(shape)


def _padded(flat: torch.Tensor) -> torch.Tensor:
    """Rows of eight, the last one filled up with zeros."""
    missing = -len(flat) % 8
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    return flat.view(-1, 8)
