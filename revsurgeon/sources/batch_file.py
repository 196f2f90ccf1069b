"""A batch of real inputs from a file, checked against what the network takes; never code from that file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import UsageError
from revsurgeon.sources.inputs import InputSpec

if TYPE_CHECKING:
    import torch

_FORM = (
    "Save a batch with numpy.save(FILE, array), or with torch.save(TENSOR, FILE); for a network with several "
    "inputs, torch.save a dict of tensors by input name."
)


def read_batch(path: str | Path, spec: InputSpec) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
    """Read a batch of a network's inputs.

    Args:
        path: an .npy file with one array, or a .pt or .pth file with a tensor, a tuple of them or a dict by
            input name. A .pt file is read as tensors only: a pickle of anything else is refused.
        spec: the inputs that the network takes. Every size but the batch's must agree; numbers are cast to
            the spec's dtype within their kind (floating, or whole).

    Returns:
        Tensors on the CPU, in the form in which the network takes its inputs.

    Raises:
        UsageError: no such file, one of another kind, or inputs that the network does not take.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("the file with real inputs is not there.", where=str(path), hint=_FORM)
    loaded = _read(path)
    tensors = _by_name(loaded, spec, path)
    checked = {name: _checked(tensor, name, spec, path) for name, tensor in tensors.items()}
    sizes = {name: len(tensor) for name, tensor in checked.items()}
    if len(set(sizes.values())) > 1:
        raise UsageError("the inputs have different batch sizes.", where=f"{path}: {sizes}", hint=_FORM)
    return tuple(checked.values()) if spec.positional else checked


def _read(path: Path) -> Any:
    import numpy
    import torch

    if path.suffix == ".npy":
        try:
            return torch.from_numpy(numpy.load(path, allow_pickle=False))
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise _unreadable(path, "not an array of numbers as numpy.save writes it", error) from None
    if path.suffix in (".pt", ".pth"):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _unreadable(path, "it holds more than tensors, and is not read as code", error) from None
        except (RuntimeError, EOFError, ValueError, OSError) as error:
            raise _unreadable(path, "not a file as torch.save writes it", error) from None
    raise UsageError(f"{path.name!r} is neither an .npy nor a .pt file.", where=str(path), hint=_FORM)


def _unreadable(path: Path, why: str, error: Exception) -> UsageError:
    first = (str(error).splitlines() or [""])[0]
    return UsageError(f"the real inputs cannot be read: {why}.", where=f"{path}: {first[:200]}", hint=_FORM)


def _by_name(loaded: Any, spec: InputSpec, path: Path) -> dict[str, Any]:
    names = list(spec.entries)
    if isinstance(loaded, Mapping):
        given: dict[str, Any] = {str(name): value for name, value in loaded.items()}
    else:
        values = list(loaded) if isinstance(loaded, tuple | list) else [loaded]
        given = dict(zip(names, values, strict=False)) if len(values) == len(names) else {"": None}
    if given.keys() != set(names):
        found = ", ".join(given) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise UsageError(
            "the file does not hold the network's inputs.",
            where=f"{path}: {found}\nthe network takes: {', '.join(names)}",
            hint=_FORM,
        )
    return {name: given[name] for name in names}


def _checked(tensor: Any, name: str, spec: InputSpec, path: Path) -> torch.Tensor:
    import torch

    entry = spec.entries[name]
    wanted = "x".join(["N", *map(str, entry.shape[1:])])
    if not isinstance(tensor, torch.Tensor):
        raise UsageError(
            f"input {name!r} is a {type(tensor).__name__}, not a tensor.", where=str(path), hint=_FORM
        )
    if tensor.dim() != len(entry.shape) or tuple(tensor.shape[1:]) != entry.shape[1:] or not len(tensor):
        shape = "x".join(map(str, tensor.shape)) or "a scalar"
        raise UsageError(
            f"input {name!r} in the file is {shape}; the network takes {wanted}, with a batch of N >= 1.",
            where=str(path),
            hint=f"If it takes other sizes too, say so: --input {name}={shape}",
        )
    dtype = getattr(torch, entry.dtype)
    if tensor.is_complex() or tensor.is_floating_point() != dtype.is_floating_point:
        raise UsageError(
            f"input {name!r} in the file is {str(tensor.dtype).removeprefix('torch.')}; the network takes "
            f"{entry.dtype}.",
            where=str(path),
            hint="Convert the numbers before saving them; images are not scaled or normalised here.",
        )
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise UsageError(f"input {name!r} in the file holds NaN or infinity.", where=str(path))
    known = entry.kind == "tokens" and entry.high > 2  # of an input that was added by hand it is not known
    if known and (int(tensor.min()) < 0 or int(tensor.max()) >= entry.high):
        raise UsageError(
            f"input {name!r} holds indices from {int(tensor.min())} to {int(tensor.max())}; the network has "
            f"{entry.high}.",
            where=str(path),
        )
    return tensor.to(dtype).contiguous()
