"""Finds the files of a checkpoint in a directory, and refuses those that point elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from revsurgeon.errors import SourceError
from revsurgeon.sources.provenance import sha256
from revsurgeon.sources.reference import WEIGHT_SUFFIXES
from revsurgeon.sources.tensors import read_pickle, read_safetensors

if TYPE_CHECKING:
    import torch

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.pth", "model.pth")

_LARGEST_INDEX = 100_000_000  # bytes of JSON


@dataclass(frozen=True)
class WeightFiles:
    """The files of one checkpoint.

    Attributes:
        root: the directory that names are relative to.
        files: the files with tensors, in order.
        index: the file that says which tensor lies where, for a sharded checkpoint.
        found: what the files were when they were found, so that a change meanwhile is noticed.
    """

    root: Path
    files: tuple[Path, ...]
    index: Path | None = None
    found: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", self._now())

    def _now(self) -> tuple[tuple[int, ...], ...]:
        states = (file.stat() for file in self.files)
        return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)

    @property
    def pickled(self) -> bool:
        """Whether these are pickles rather than safetensors."""
        return any(file.suffix != ".safetensors" for file in self.files)

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of every file, by its name inside the directory.

        Raises:
            SourceError: they are no longer the files that were found, so the tensors may be of others.
        """
        files = [*self.files, *([self.index] if self.index else [])]
        hashes = {file.relative_to(self.root).as_posix(): sha256(file) for file in files}
        if self._now() != self.found:
            raise SourceError(
                "the weights were changed while they were read.",
                where="\n".join(map(str, self.files[:10])),
                hint="Run the command again when nothing writes to them.",
            )
        return hashes

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name: pages of the files, or copies; those of shards are on the disk too.

        Raises:
            SourceError: a file that is damaged, or a tensor that lies in two files.
        """
        tensors: dict[str, torch.Tensor] = {}
        for file in self.files:
            if file.suffix == ".safetensors":
                part = read_safetensors(file, on_disk=self.index is not None)
            else:
                part = read_pickle(file)
            if twice := tensors.keys() & part.keys():
                raise SourceError(
                    f"the tensor {min(twice)!r} is in more than one file of the checkpoint.", where=str(file)
                )
            tensors |= part
        return tensors


def find_weights(
    directory: Path, *, allow_pickle: bool = False, trusted: tuple[Path, ...] = ()
) -> WeightFiles:
    """Return the checkpoint in a directory: safetensors, whole or sharded, before pickles.

    Args:
        allow_pickle: also take `.bin`, `.pth` and `.pt` files, which are read as tensors only.
        trusted: directories outside that symbolic links may lead to; a download cache has its files there.

    Raises:
        SourceError: no weights, several to choose from, missing shards, or paths that lead elsewhere.
    """
    for name in (SAFETENSORS, SAFETENSORS_INDEX):
        if (directory / name).exists() or (directory / name).is_symlink():
            return _checkpoint(directory, name, trusted)
    single = sorted(file.name for file in directory.glob("*.safetensors"))
    if len(single) == 1:
        return _checkpoint(directory, single[0], trusted)
    if single:
        raise SourceError(
            "the directory holds several weights files and none is the usual model.safetensors.",
            where="\n".join(str(directory / name) for name in single),
            hint="Name the file itself as the source.",
        )
    return _find_pickle(directory, allow_pickle, trusted)


def one_file(file: Path, *, allow_pickle: bool = False, trusted: tuple[Path, ...] = ()) -> WeightFiles:
    """Return the checkpoint that is one given file, or the index of a sharded one.

    Raises:
        SourceError: a pickle without leave to read it, or a file of another kind.
    """
    if file.suffix in WEIGHT_SUFFIXES and file.suffix != ".safetensors" and not allow_pickle:
        raise _pickle_refused(file)
    return _checkpoint(file.parent, file.name, trusted)


def _find_pickle(directory: Path, allow_pickle: bool, trusted: tuple[Path, ...]) -> WeightFiles:
    found = [name for name in PICKLES if (directory / name).exists()]
    found += sorted(
        file.name
        for suffix in WEIGHT_SUFFIXES[1:]
        for file in directory.glob(f"*{suffix}")
        if file.name not in found
    )
    if not found:
        raise SourceError(
            "the directory holds no weights.",
            where=str(directory),
            hint="Expected model.safetensors. To take the architecture alone, add --random-weights.",
        )
    if not allow_pickle:
        raise _pickle_refused(directory / found[0])
    if len(found) > 1 and found[0] not in PICKLES:
        raise SourceError(
            "the directory holds several weights files.",
            where="\n".join(str(directory / name) for name in found),
            hint="Name the file itself as the source.",
        )
    return _checkpoint(directory, found[0], trusted)


def _pickle_refused(file: Path) -> SourceError:
    return SourceError(
        "the weights are a pickle, which is not read unless you say so.",
        where=str(file),
        hint="Prefer a safetensors file, or add --allow-pickle: tensors are then read, and no code is run.",
    )


def _checkpoint(directory: Path, name: str, trusted: tuple[Path, ...]) -> WeightFiles:
    file = inside(directory, name, trusted)
    if file.suffix != ".json":
        return WeightFiles(directory, (file,))
    return WeightFiles(
        directory, tuple(inside(directory, shard, trusted) for shard in shard_names(file)), index=file
    )


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that an index lists, in its order; each lies in the index's directory.

    Raises:
        SourceError: no index, or one that names files elsewhere.
    """
    names = list(dict.fromkeys(_weight_map(index).values()))
    for name in names:
        _check_name(index.parent, name)
    return names


def inside(directory: Path, name: str, trusted: tuple[Path, ...] = ()) -> Path:
    """Return the path of a file that a checkpoint names, if it really lies in its directory.

    Raises:
        SourceError: an absolute name, one that leads outside, a link to outside, or a file that is missing.
    """
    _check_name(directory, name)
    path = directory / name
    if not path.is_file():
        reason = "a directory" if path.is_dir() else "missing"
        raise SourceError(
            f"a file of the checkpoint is {reason}: {name}",
            where=str(directory),
            hint="Download or copy the checkpoint again, whole.",
        )
    allowed = [directory.resolve(), *(root.resolve() for root in trusted)]
    if not any(path.resolve().is_relative_to(root) for root in allowed):
        raise SourceError(
            "a file of the checkpoint is a link to outside its directory.",
            where=f"{path} -> {path.resolve()}",
            hint="Replace the link by the file, if you trust what it points to.",
        )
    return path


def _check_name(directory: Path, name: str) -> None:
    windows = PureWindowsPath(name)  # it also knows / as a separator
    if windows.drive or windows.root or ".." in windows.parts or not name or "\0" in name:
        raise SourceError(
            f"the checkpoint names the file {name!r}, outside its own directory.", where=str(directory)
        )


def _weight_map(index: Path) -> dict[str, str]:
    if index.stat().st_size > _LARGEST_INDEX:
        raise SourceError("the index of the weights is too large to be one.", where=str(index))
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(
            "the index of the weights is not readable as one.", where=f"{index}\n{error}"
        ) from None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(x, str) for x in weight_map.values())
    ):
        raise SourceError("the index of the weights names no files.", where=str(index))
    for shard in weight_map.values():
        if not shard.endswith((".safetensors", ".bin", ".pth", ".pt")):
            raise SourceError(
                f"the index of the weights names {shard!r}, which is no weights file.", where=str(index)
            )
    return weight_map
