"""Plain weights: the tensors of a rewired network as its unrewired class loads them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from revsurgeon.errors import VerificationError
from revsurgeon.rewiring.measure import same_bits


def write_weights(model: nn.Module, path: Path) -> None:
    """Write a network's state dict as safetensors, read it back, and compare.

    Args:
        model: rewired; its names are those of the source.
        path: the file.

    Raises:
        VerificationError: what was read is not what was written.
    """
    from safetensors.torch import load_file, save_file

    state: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in model.state_dict().items():
        # Tensors that share memory are written under each of their names, as every library loads them.
        shared = tensor.untyped_storage().data_ptr() in places
        places.add(tensor.untyped_storage().data_ptr())
        state[name] = tensor.detach().cpu().contiguous()
        if shared and state[name].data_ptr() == tensor.data_ptr():
            state[name] = state[name].clone()
    save_file(state, path, metadata={"format": "pt"})
    found = load_file(path)
    changed = [name for name in state if name not in found or not same_bits(found[name], state[name])]
    if changed or found.keys() != state.keys():
        raise VerificationError(
            "the weights in the file are not the network's; nothing was written.",
            where=", ".join(changed[:5]),
        )
