"""Random inputs for a check, by batch size and seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.probe import ExampleInputs, as_arguments
from revsurgeon.rewiring.measure import Arguments, batch_size
from revsurgeon.sources.inputs import InputSpec

Draw = Callable[[int, int], Arguments]


def drawing(source: InputSpec | ExampleInputs, dtype: str | None, device: torch.device) -> Draw:
    """A function from batch size and seed to arguments.

    Args:
        source: a description of the inputs, or examples of them. Of examples, seed 0 gives them as they
            are, and other seeds give floating tensors of the same mean and deviation; whole numbers
            (tokens, masks) keep their values, in another order of the batch.
        dtype: to cast floating inputs to.
        device: to put them on.
    """
    if isinstance(source, InputSpec):
        return lambda size, seed: as_arguments(source.example(size, seed, str(device)))
    given = as_arguments(source)

    def draw(size: int, seed: int) -> Arguments:
        generator = torch.Generator().manual_seed(seed)
        batch = batch_size(given)

        def like(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim and tensor.shape[0] == batch:
                rows = torch.arange(size).add(seed).remainder(batch)
                tensor = tensor.detach()[rows.to(tensor.device)]
            if tensor.is_floating_point():
                if seed:
                    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
                    deviation = tensor.std() if tensor.numel() > 1 else tensor.new_ones(())
                    tensor = tensor.mean() + deviation * noise
                tensor = tensor if dtype is None else tensor.to(getattr(torch, dtype))
            return tensor.to(device)

        found: Any = pytree.tree_map_only(torch.Tensor, like, given)
        return found

    return draw
