"""Change what is in an artifact's files, as consistently as one likes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from revsurgeon.artifact import Manifest, read_manifest, read_tensors
from revsurgeon.artifact.header import StoredTensor, encode_header, read_header
from revsurgeon.artifact.tensor_bytes import tensor_bytes, tensor_kind

Tensors = dict[str, torch.Tensor]
Data = dict[str, Any]


def flip_a_bit(file: Path, offset: int = -1) -> None:
    """Flip the lowest bit of a byte, counted from the end if negative."""
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def tamper(
    artifact: Path,
    *,
    tensors: Callable[[Tensors], None] = lambda tensors: None,
    manifest: Callable[[Data], None] = lambda data: None,
    rehash: bool = True,
    yaml: bool = True,
    header: bool = True,
) -> None:
    """Change the tensors and the manifest of an artifact of one file.

    Args:
        artifact: its directory.
        tensors: changes the state dict in place.
        manifest: changes the manifest's data in place.
        rehash: make the manifest's records of the tensors agree with them.
        yaml, header: write the changed manifest there.
    """
    before = read_manifest(artifact)
    state = {name: tensor.clone() for name, tensor in read_tensors(artifact, before).items()}
    tensors(state)
    data = before.model_dump(mode="json")
    if rehash:
        data["tensors"] = {name: _record(name, tensor) for name, tensor in sorted(state.items())}
    manifest(data)
    text = json.dumps(data) if header else before.to_json()
    write_file(artifact / "model.safetensors", state, {"format": "pt", "revsurgeon": text})
    if yaml:
        (artifact / "manifest.yaml").write_text(Manifest.model_validate(data).to_yaml())


def write_file(file: Path, state: Tensors, metadata: dict[str, str]) -> None:
    """A weight file with exactly these tensors and this metadata."""
    stored, parts, begin = {}, [], 0
    for name, tensor in state.items():
        part = bytes(tensor_bytes(tensor))
        stored[name] = StoredTensor(*tensor_kind(name, tensor), begin, begin + len(part))
        parts.append(part)
        begin += len(part)
    file.write_bytes(encode_header(stored, metadata) + b"".join(parts))


def rename_a_tensor(file: Path, old: str, new: str) -> None:
    """Another name in the header alone."""
    header = read_header(file)
    raw = file.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    tensors = {new if name == old else name: entry for name, entry in header.tensors.items()}
    file.write_bytes(encode_header(tensors, header.metadata) + data)


def _record(name: str, tensor: torch.Tensor) -> Data:
    dtype, shape = tensor_kind(name, tensor)
    digest = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
    return {"dtype": dtype, "shape": list(shape), "sha256": digest}
