"""Run a segment piece by piece, where its pieces do not depend on one another.

An MLP treats every token alike. Computed over a quarter of the tokens at a time it needs a quarter of the
memory while it is differentiated, which is what is left at the peak of a reversible network's step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Chunks:
    """Into how many pieces a segment's input is cut, along which dimension."""

    dimension: int
    count: int

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The pieces of a tensor of the stream's shape: views, to be read by `piece` or to be written to."""
        return x.tensor_split(min(self.count, x.shape[self.dimension]), dim=self.dimension)

    def piece(self, x: torch.Tensor) -> torch.Tensor:
        """A piece as the segment sees it: in memory of its own, of which the whole's size says nothing."""
        if not x.is_contiguous():
            x = x.clone()
        # The stride of a dimension of size 1 is arbitrary and still chooses a convolution's kernel.
        # view_as settles it, here as in a record.
        return x.view_as(x)

    def join(self, pieces: list[torch.Tensor]) -> torch.Tensor:
        """A tensor of the stream's shape."""
        return torch.cat(pieces, dim=self.dimension)

    def piecewise(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """A segment's function that runs piece by piece."""

        def run(block: Any, x: torch.Tensor, alpha: float, *extras: Any) -> torch.Tensor:
            # Without its cache, autocast makes one low-precision copy of a weight for each piece, so that
            # their gradients are added up in the weight's own precision.
            enabled = torch.is_autocast_cache_enabled()
            torch.set_autocast_cache_enabled(False)
            try:
                return self.join([function(block, self.piece(x), alpha, *extras) for x in self.split(x)])
            finally:
                torch.set_autocast_cache_enabled(enabled)

        return run
