"""Reading an artifact: nothing is believed before it is checked, and tensors are mapped, not read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.artifact.header import Header, read_header
from revsurgeon.artifact.manifest import Manifest, TensorRecord
from revsurgeon.artifact.names import INDEX, MANIFEST, WEIGHTS
from revsurgeon.artifact.plain_json import MAX_BYTES, parse_json
from revsurgeon.artifact.staging import is_leftover
from revsurgeon.artifact.tensor_bytes import tensor_bytes
from revsurgeon.errors import ArtifactError

if TYPE_CHECKING:
    import torch

_KEY = "revsurgeon"
_SHARD = re.compile(r"[A-Za-z0-9][\w.-]{0,240}\.safetensors")
_SLACK = 1 << 16
_HELD_AT_ONCE = 64 << 20  # bytes of a file that stay mapped while its tensors are gone through
_AGAIN = "Copy or download the artifact again, or convert the source again."


def read_manifest(path: Path | str) -> Manifest:
    """The manifest of an artifact, from the header of its (first) weight file.

    Args:
        path: an artifact's directory, or its one .safetensors file.

    Raises:
        ArtifactError: there is no artifact, it is malformed, or its manifest.yaml says something else.
    """
    path = Path(path)
    file = next(iter(weight_files(path)))
    manifest = _manifest_in(read_header(file), file)
    if path.is_dir():
        _agrees_with_yaml(manifest, path / MANIFEST)
    elif len(manifest.files) > 1:
        raise ArtifactError(
            f"The file is one of {len(manifest.files)} shards.", where=str(path), hint="Give their directory."
        )
    return manifest


def read_tensors(path: Path | str, manifest: Manifest) -> dict[str, torch.Tensor]:
    """The weights of an artifact on the CPU, mapped: bytes are read from disk when they are used.

    A change to a tensor is never written back. The hashes are not checked here, because that would
    read everything; see `changed_tensors`.

    Args:
        path: as for `read_manifest`.
        manifest: what `read_manifest` returned for it.

    Raises:
        ArtifactError: a file is missing or malformed, or names, dtypes and shapes are not the manifest's.
    """
    files = _checked_files(Path(path), manifest)
    tensors: dict[str, torch.Tensor] = {}
    for file, names in files.items():
        with _opened(file) as opened:
            tensors |= {name: opened.get_tensor(name) for name in names}
    return {name: tensors[name] for name in manifest.tensors}


def each_tensor(path: Path | str, manifest: Manifest) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights one after the other, by name; pages of the files that were read are let go of on the way.

    Args:
        path: as for `read_manifest`.
        manifest: what `read_manifest` returned for it.

    Raises:
        ArtifactError: as `read_tensors` does, before the first one is handed out.
    """
    for file, names in _checked_files(Path(path), manifest).items():
        done = 0
        while done < len(names):
            held = 0
            with _opened(file) as opened:
                while done < len(names) and held < _HELD_AT_ONCE:
                    tensor = opened.get_tensor(names[done])
                    held += tensor.nbytes
                    yield names[done], tensor
                    done += 1
                del tensor


def locate_tensors(path: Path | str, manifest: Manifest) -> dict[str, Path]:
    """The file of every tensor.

    Raises:
        ArtifactError: as `read_tensors` does.
    """
    files = _checked_files(Path(path), manifest)
    return {name: file for file, names in files.items() for name in names}


def _checked_files(path: Path, manifest: Manifest) -> dict[Path, list[str]]:
    """The weight files with their tensors, once their headers, the index and the manifest agree."""
    files = weight_files(path)
    headers = {file: read_header(file) for file in files}
    _agree(headers, files, manifest, path)
    return {file: list(header.tensors) for file, header in headers.items()}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"The weights cannot be read: {error}.", where=str(file), hint=_AGAIN) from None


def changed_tensors(tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> list[str]:
    """The names whose bytes are not those that the manifest has the hash of; reads everything."""
    return list(_changed(tensors, manifest.tensors))


def are_changed(tensors: Mapping[str, torch.Tensor], records: Mapping[str, TensorRecord]) -> bool:
    """Whether there are other tensors than a manifest recorded; reads as far as the first that differs."""
    return tensors.keys() != records.keys() or any(_changed(tensors, records))


def _changed(tensors: Mapping[str, torch.Tensor], records: Mapping[str, TensorRecord]) -> Iterator[str]:
    for name, record in records.items():
        if name not in tensors or hashlib.sha256(tensor_bytes(tensors[name])).hexdigest() != record.sha256:
            yield name


def weight_files(path: Path) -> dict[Path, set[str] | None]:
    """The weight files of an artifact and, where there is an index, the tensors that it says are in each.

    Raises:
        ArtifactError: they are not all there, or lie elsewhere.
    """
    real = path.resolve()
    if is_leftover(real) or is_leftover(real.parent):
        raise ArtifactError(
            "The directory was left by a conversion that did not finish.",
            where=str(path),
            hint="Convert again; the next run into the same output removes it.",
        )
    if path.is_dir():
        return _files_in(path)
    if not path.exists():
        raise ArtifactError("There is no such artifact.", where=str(path), hint="Check the path.")
    if path.suffix != ".safetensors":
        raise ArtifactError(
            "An artifact is a directory or a .safetensors file.",
            where=str(path),
            hint="To make one of another checkpoint: revsurgeon convert PATH",
        )
    return {path: None}


def _files_in(directory: Path) -> dict[Path, set[str] | None]:
    whole, index = directory / WEIGHTS, directory / INDEX
    if whole.exists() and index.exists():
        raise ArtifactError(f"There is both a {WEIGHTS} and a {INDEX}.", where=str(directory), hint=_AGAIN)
    if index.exists():
        return {inside(directory, name): tensors for name, tensors in _index(index).items()}
    if whole.exists() or whole.is_symlink():
        return {inside(directory, WEIGHTS): None}
    raise ArtifactError(
        f"The directory is not an artifact: it has no {WEIGHTS}.",
        where=str(directory),
        hint="To make one of a checkpoint: revsurgeon convert PATH",
    )


def _index(path: Path) -> dict[str, set[str]]:
    """Shard names, each with its tensors, in the order of the names."""
    try:
        with path.open("rb") as file:
            data: Any = parse_json(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise ArtifactError(f"The index cannot be read: {error.strerror}.", where=str(path)) from None
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ArtifactError("The index has no weight map.", where=str(path), hint=_AGAIN)
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise ArtifactError(
                f"The index puts the tensor {tensor[:80]!r} into {str(name)[:80]!r}, "
                "which is not the name of a file beside it.",
                where=str(path),
                hint="Do not trust this artifact.",
            )
        shards.setdefault(name, set()).add(tensor)
    return dict(sorted(shards.items()))


def inside(directory: Path, name: str) -> Path:
    """A file of the directory, that is really there or in the same repository of the Hub's cache.

    Raises:
        ArtifactError: it is not there, or a link to elsewhere.
    """
    path = directory / name
    try:
        real, home = path.resolve(strict=True), directory.resolve()
    except (OSError, RuntimeError):
        raise ArtifactError(f"{name} is missing.", where=str(path), hint=_AGAIN) from None
    # The Hub's cache: models--ORG--NAME/snapshots/COMMIT/FILE is a link into models--ORG--NAME/blobs.
    cache = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in (home, cache):
        raise ArtifactError(
            f"{name} is a link that leads out of the artifact.",
            where=f"{path} -> {real}",
            hint="Do not trust this artifact, or put the file itself there.",
        )
    return path


def _manifest_in(header: Header, file: Path) -> Manifest:
    if _KEY not in header.metadata:
        raise ArtifactError(
            "The weights are not from revsurgeon: their header has no manifest.",
            where=str(file),
            hint=f"To convert them: revsurgeon convert {file}",
        )
    if header.metadata.get("format") != "pt":
        raise ArtifactError("The weights are not said to be PyTorch's.", where=str(file), hint=_AGAIN)
    return Manifest.from_json(header.metadata[_KEY], str(file))


def _agrees_with_yaml(manifest: Manifest, path: Path) -> None:
    if not path.exists():
        return
    expected = manifest.to_yaml().encode()
    try:
        with path.open("rb") as file:
            raw = file.read(2 * len(expected) + _SLACK)  # more than that cannot be the same manifest
        if raw == expected or Manifest.from_yaml(raw.decode("utf-8"), str(path)) == manifest:
            return
    except OSError as error:
        raise ArtifactError(f"The manifest cannot be read: {error.strerror}.", where=str(path)) from None
    except UnicodeDecodeError:
        raise ArtifactError("The manifest is not UTF-8 text.", where=str(path)) from None
    raise ArtifactError(
        "The manifest and the weights disagree: manifest.yaml is not the one in the weights' header.",
        where=str(path),
        hint="The header counts. Remove manifest.yaml, or convert the source again.",
    )


def _agree(
    headers: Mapping[Path, Header], files: Mapping[Path, set[str] | None], manifest: Manifest, path: Path
) -> None:
    """Check the headers against each other, the index and the manifest."""
    stated = {header.metadata.get(_KEY) for header in headers.values()}
    if len(stated) > 1:
        raise ArtifactError("The shards are of different artifacts.", where=str(path), hint=_AGAIN)
    if path.is_dir() and sorted(file.name for file in files) != sorted(manifest.files):
        names = ", ".join(manifest.files)
        raise ArtifactError(f"The weight files are not those of the manifest: {names}.", where=str(path))
    for file, header in headers.items():
        indexed = files[file]
        if indexed is not None and indexed != header.tensors.keys():
            name = min(indexed ^ header.tensors.keys())
            raise ArtifactError(f"The index is wrong about {name[:80]!r}.", where=str(file), hint=_AGAIN)
        for name, stored in header.tensors.items():
            record = manifest.tensors.get(name)
            if record is None or (record.dtype, tuple(record.shape)) != (stored.dtype, stored.shape):
                told = f"{record.dtype} {record.shape}" if record else "no such tensor"
                raise ArtifactError(
                    f"The weights are not those of the manifest: {name[:80]!r} is {stored.dtype} "
                    f"{list(stored.shape)}, the manifest has {told}.",
                    where=str(file),
                    hint=_AGAIN,
                )
    # No tensor is there twice: the index is a mapping from names, and each header equals its part of it.
    missing = sorted(
        manifest.tensors.keys() - {name for header in headers.values() for name in header.tensors}
    )
    if missing:
        raise ArtifactError(
            f"{len(missing)} tensors of the manifest are missing, {missing[0][:80]!r} among them.",
            where=str(path),
            hint=_AGAIN,
        )
