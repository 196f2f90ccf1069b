"""Writing an artifact: one pass over the tensors, one tensor in memory, the same bytes every time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from revsurgeon.artifact.header import ALIGNMENT, ITEM_BYTES, StoredTensor, byte_count, encode_header
from revsurgeon.artifact.manifest import Manifest, TensorRecord
from revsurgeon.artifact.names import CARD, CONFIG, INDEX, MANIFEST, shard_name
from revsurgeon.artifact.plain_json import render_json
from revsurgeon.artifact.staging import staged
from revsurgeon.artifact.tensor_bytes import tensor_bytes, tensor_kind
from revsurgeon.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

_NO_HASH = "0" * 64


@dataclass(frozen=True)
class _Shard:
    """One weight file: its name and its tensors in the order of their bytes."""

    file: str
    tensors: dict[str, StoredTensor]


def write_artifact(
    output: Path | str,
    tensors: Mapping[str, torch.Tensor],
    manifest: Manifest,
    *,
    config: bytes | None,
    card: str,
    force: bool = False,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write a directory with weights, manifest, config.json and README.md, all at once or not at all.

    Args:
        output: the directory to make.
        tensors: a state dict, on any device. Shared tensors are written under each of their names.
        manifest: what was done; its `tensors`, `files` and `config` are filled in here.
        config: the source's config.json, byte for byte. None: one is made from `manifest.build`.
        card: the text of README.md.
        force: replace an artifact that is there.
        max_shard_size: bytes a weight file, as a number or as "5GB", "500MiB"; one tensor may exceed it.

    Returns:
        The output's path.

    Raises:
        ArtifactError: the output cannot be written, or a tensor cannot be stored.
        UsageError: `max_shard_size` makes no sense.
    """
    output = Path(output)
    shards = _planned(tensors, byte_limit(max_shard_size))
    manifest = manifest.model_copy(
        update={"files": [shard.file for shard in shards], "config": _text(config)}
    )
    manifest = _with_hashes(manifest, shards, {})
    with staged(output, force=force) as stage:
        # The header stands before the tensors and holds their hashes. A hash has a fixed length, so room
        # is left for the header and it is filled in last: the tensors are read once, not twice.
        hashes: dict[str, str] = {}
        with ThreadPoolExecutor(max_workers=1) as pool:
            for shard in shards:
                _write_tensors(
                    stage / shard.file, shard, len(_header(shard, manifest)), tensors, hashes, pool
                )
        manifest = _with_hashes(manifest, shards, hashes)
        for shard in shards:
            with (stage / shard.file).open("r+b") as file:
                file.write(_header(shard, manifest))
        if len(shards) > 1:
            (stage / INDEX).write_bytes(_index(shards))
        (stage / MANIFEST).write_bytes(manifest.to_yaml().encode())
        (stage / CONFIG).write_bytes(
            render_json(manifest.build).encode() + b"\n" if config is None else config
        )
        (stage / CARD).write_bytes(card.encode())
    return output


def _write_tensors(
    path: Path,
    shard: _Shard,
    start: int,
    tensors: Mapping[str, torch.Tensor],
    hashes: dict[str, str],
    pool: ThreadPoolExecutor,
) -> None:
    """Write a shard's tensors from offset `start`, hashing each in a thread while it is written."""
    with path.open("wb") as file:
        file.seek(start)
        for name in shard.tensors:
            hashes[name] = _write_tensor(file, tensors[name], pool)
        file.truncate(start + sum(tensor.end - tensor.begin for tensor in shard.tensors.values()))


def _write_tensor(file: BinaryIO, tensor: torch.Tensor, pool: ThreadPoolExecutor) -> str:
    """Write one tensor and return its hash; a function, so that a copy is gone before the next is made."""
    data = tensor_bytes(tensor)
    digest = hashlib.sha256()
    hashing = pool.submit(digest.update, data)
    try:
        file.write(data)
    finally:
        hashing.result()
    return digest.hexdigest()


def _planned(tensors: Mapping[str, torch.Tensor], limit: int) -> list[_Shard]:
    """Fill shards in the order of the names.

    Inside one, tensors of whole multiples of the alignment come first, so that each begins at one; the others
    follow with wide elements first, so that no element straddles its own size.
    """
    kinds = {name: tensor_kind(name, tensor) for name, tensor in sorted(tensors.items())}
    groups: list[list[str]] = [[]]
    filled = 0
    for name, kind in kinds.items():
        size = byte_count(*kind)
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    shards = []
    for number, names in enumerate(groups, start=1):
        placed: dict[str, StoredTensor] = {}
        offset = 0
        for name in sorted(names, key=lambda name: _place(name, kinds[name])):
            end = offset + byte_count(*kinds[name])
            placed[name] = StoredTensor(*kinds[name], offset, end)
            offset = end
        shards.append(_Shard(shard_name(number, len(groups)), placed))
    return shards


def _place(name: str, kind: tuple[str, tuple[int, ...]]) -> tuple[bool, int, str]:
    return byte_count(*kind) % ALIGNMENT != 0, -ITEM_BYTES[kind[0]], name


def _with_hashes(manifest: Manifest, shards: list[_Shard], hashes: Mapping[str, str]) -> Manifest:
    records = {
        name: TensorRecord(dtype=kind.dtype, shape=list(kind.shape), sha256=hashes.get(name, _NO_HASH))
        for shard in shards
        for name, kind in shard.tensors.items()
    }
    return manifest.model_copy(update={"tensors": dict(sorted(records.items()))})


def _header(shard: _Shard, manifest: Manifest) -> bytes:
    return encode_header(shard.tensors, {"format": "pt", "revsurgeon": manifest.to_json()})


def _index(shards: list[_Shard]) -> bytes:
    """The Hub's index of a sharded checkpoint."""
    total = sum(tensor.end - tensor.begin for shard in shards for tensor in shard.tensors.values())
    weight_map = {name: shard.file for shard in shards for name in shard.tensors}
    return render_json({"metadata": {"total_size": total}, "weight_map": weight_map}).encode() + b"\n"


def _text(config: bytes | None) -> str | None:
    try:
        return None if config is None else config.decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactError("The source's config.json is not UTF-8 text.") from None


def byte_limit(size: int | str) -> int:
    """The bytes that a size as people write it stands for: "5GB", "500MiB", 1000.

    Raises:
        UsageError: it is not a size, or none that a file can have.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(size), re.IGNORECASE)
    unit = match[2].upper() if match else ""
    unit = unit if unit in _UNITS else f"{unit}B"
    limit = int(float(match[1]) * _UNITS.get(unit, 0)) if match else 0
    if limit < 1:
        raise UsageError(
            f"{size!r} is not a size.", hint="Write for example 5GB, 500MB or a number of bytes."
        )
    return limit
