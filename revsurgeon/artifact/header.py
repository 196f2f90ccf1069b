"""The safetensors format: 8 bytes of length, a JSON header, then the tensors without a gap.

safetensors itself reads the data. Its writer is not used because the header here holds the hashes of
the tensors, and because it refuses shared and non-contiguous tensors. The reading side trusts
nothing: every length, offset and name is checked before anything is mapped.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revsurgeon.artifact.plain_json import MAX_BYTES, parse_json, render_json
from revsurgeon.errors import ArtifactError

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes an element, by the format's name of the dtype."""

ALIGNMENT = 64
"""Bytes. Torch puts its own tensors at multiples of it, and kernels may sum in another order elsewhere."""

_MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: its type, and where its bytes are, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def byte_count(dtype: str, shape: tuple[int, ...]) -> int:
    """The bytes of a tensor; `dtype` is one of `ITEM_BYTES`."""
    return math.prod(shape) * ITEM_BYTES[dtype]


def encode_header(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file, up to the first tensor, padded so that the tensors are aligned.

    Raises:
        ArtifactError: there are more tensors than a header can hold.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, tensor in tensors.items():
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.begin, tensor.end],
        }
    text = render_json(entries).encode("ascii")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_BYTES:
        raise ArtifactError(
            f"The manifest takes {len(text) >> 20} MiB, and a header holds {MAX_BYTES >> 20}.",
            hint="This network has too many tensors for one artifact.",
        )
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> Header:
    """Read and check a file's header; its data is not read.

    Raises:
        ArtifactError: it is not a well-formed safetensors file.
    """
    where = str(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ArtifactError("The weights are not a regular file.", where=where)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _broken("it is shorter than a header", where)
            length = int.from_bytes(prefix, "little")
            if length > MAX_BYTES:
                raise _broken(f"its header claims {length:,} bytes", where)
            if length > size - 8:
                raise _broken(f"it is truncated: {size:,} bytes, the header alone claims {length:,}", where)
            raw = file.read(length)
    except OSError as error:
        raise ArtifactError(f"The weights cannot be read: {error.strerror}.", where=where) from None
    if raw[:1] != b"{":
        raise _broken("its header is not a JSON object", where)
    return _checked(parse_json(raw, where), size - 8 - length, where)


def _checked(entries: dict[str, Any], data_bytes: int, where: str) -> Header:
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken("its metadata is not a mapping of text to text", where)
    tensors = {name: _stored_tensor(name, entry, where) for name, entry in entries.items()}
    reached, before = 0, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != reached:
            relation = "overlaps" if tensor.begin < reached else "leaves a gap after"
            raise _broken(f"tensor {name!r} {relation} {before!r}", where)
        reached, before = tensor.end, name
    if reached != data_bytes:
        fault = "truncated" if reached > data_bytes else "too long"
        raise _broken(f"it is {fault}: {data_bytes:,} bytes of tensors, the header claims {reached:,}", where)
    return Header(tensors, metadata)


def _stored_tensor(name: str, entry: object, where: str) -> StoredTensor:
    shown = name[:80]
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(f"the entry of tensor {shown!r} is malformed", where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _broken(f"tensor {shown!r} has the unknown dtype {str(dtype)[:40]!r}", where)
    if not _sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _broken(f"tensor {shown!r} has no valid shape", where)
    if not _sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != byte_count(dtype, tuple(shape)):
        raise _broken(f"the offsets of tensor {shown!r} do not fit its shape and dtype", where)
    return StoredTensor(dtype, tuple(shape), *offsets)


def _sizes(value: object) -> bool:
    """Whether it is a list of sizes that a 64-bit machine can have."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _broken(what: str, where: str) -> ArtifactError:
    return ArtifactError(
        f"The file is not a sound safetensors file: {what}.",
        where=where,
        hint="Copy or download it again, or convert the source again.",
    )
