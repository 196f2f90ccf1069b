"""Reads the tensors of one weights file as pages of the file, and never as code."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import SourceError

if TYPE_CHECKING:
    import torch

# The keys under which training scripts keep the state dict; averaged weights first, as timm prefers them.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state")


def main_dtype(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the floating dtype that most of the weights' bytes are in; None if nothing is floating."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.nbytes
    return str(sizes.most_common(1)[0][0]).removeprefix("torch.") if sizes else None


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        SourceError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, ValueError) as error:
        raise SourceError(
            "the weights file is damaged or no safetensors file.",
            where=f"{file}\n{error}",
            hint="Download or copy it again. A file that git-lfs did not fetch is a short text instead.",
        ) from None


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
