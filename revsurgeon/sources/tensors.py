"""Reads the tensors of one weights file, once into memory, and never as code."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import SourceError

if TYPE_CHECKING:
    import torch

# The keys under which training scripts keep the state dict; averaged weights first, as timm prefers them.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state")


_ALIGNMENT = 64  # bytes, of torch's allocator on the CPU
_COPIED_AT_ONCE = 64 * 2**20  # bytes of a file that stay in memory beside their copies


def main_dtype(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the floating dtype that most of the weights' bytes are in; None if nothing is floating."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.nbytes
    return str(sizes.most_common(1)[0][0]).removeprefix("torch.") if sizes else None


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor itself, or a copy where it does not begin where torch's own tensors would.

    Kernels may sum in another order then, so that a network would not compute the same bits as with its own
    library's loading, which copies.
    """
    return tensor if is_aligned(tensor) else tensor.clone()


def is_aligned(tensor: torch.Tensor) -> bool:
    """Whether a tensor begins where torch's own would."""
    return tensor.device.type != "cpu" or tensor.data_ptr() % _ALIGNMENT == 0


def read_safetensors(file: Path, *, on_disk: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file: pages of it where it has them aligned, else copies.

    Pages that were copied are let go of again and again, so that memory holds the weights once.

    Args:
        file: to read.
        on_disk: make the copies in a file of their own, if the disk has room, and not in memory.

    Raises:
        SourceError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, torch.Tensor] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
        placed = _on_disk(file.stat().st_size + _ALIGNMENT * len(names)) if on_disk else aligned
        while len(tensors) < len(names):
            copied = 0
            with safe_open(file, framework="pt") as opened:
                while len(tensors) < len(names) and copied < _COPIED_AT_ONCE:
                    name = names[len(tensors)]
                    tensors[name] = placed(opened.get_tensor(name))
                    copied += tensors[name].nbytes
        return tensors
    except (SafetensorError, ValueError) as error:
        raise SourceError(
            "the weights file is damaged or no safetensors file.",
            where=f"{file}\n{error}",
            hint="Download or copy it again. A file that git-lfs did not fetch is a short text instead.",
        ) from None


def _on_disk(size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """`aligned`, with copies in a file of so many bytes; it is made when the first of them is due."""
    from revsurgeon.sources.scratch import Scratch

    scratch: Scratch | None = None
    full = False

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal scratch, full
        if full or is_aligned(tensor):
            return aligned(tensor)
        try:
            scratch = scratch or Scratch(size)
        except OSError:
            full = True
            return aligned(tensor)
        return scratch.copy_of(tensor, _ALIGNMENT)

    return placed


def read_pickle(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a pickled checkpoint, out of the wrapping that training scripts put around them.

    Raises:
        SourceError: the file is damaged or holds more than tensors.
    """
    import torch

    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before PyTorch 1.6 cannot be mapped
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise SourceError(
            "the weights file holds more than tensors, or is damaged; it is not read any other way.",
            where=f"{file}\n{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="Save its state dict as safetensors where you trust it, and convert that.",
        ) from None
    return _state_dict(content, file)


def _state_dict(content: Any, file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint, which training scripts wrap in one of a few customary keys."""
    import torch

    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
        if tensors and len(tensors) == len(content):
            return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            if tensors:
                return tensors
            break
        content = content[wrapper]
    raise SourceError("the weights file holds no state dict.", where=str(file))
