"""Exact arithmetic as single kernels, made by torch.compile, for networks with compiled segments.

They give the same bits as the ones they replace: every step but the rounding to the grid is exact.
All that a schedule moves is an argument (a tensor without dimensions), so nothing is compiled anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from revsurgeon.reversible.arithmetic import ExactArithmetic, Streams, laid_out, widened
from revsurgeon.reversible.bits import pack_bits, unpack_bits


@dataclass(frozen=True)
class FusedExactArithmetic(ExactArithmetic):
    """`ExactArithmetic` with one kernel for each way of a step.

    Args:
        backend: torch.compile's.
    """

    backend: Any = "inductor"

    def couple(
        self, streams: Streams, g: torch.Tensor, keep: bool = True
    ) -> tuple[Streams, torch.Tensor | None]:
        """The next streams, and what must be kept to come back."""
        if not keep:
            return super().couple(streams, g, keep)
        y = laid_out(streams.y, g.stride())
        next_x, next_y, place = self._compiled(_couple)(
            streams.x,
            y,
            widened(g),
            _double(self.beta),
            _single(2.0**self.grid_bits),
            _single(2.0**self.m / self.p),
            _single(0.5 / self.p),
            self.bits > 8,
        )
        return Streams(next_x, next_y), pack_bits(place.contiguous(), self.bits)

    def previous_x(
        self, streams: Streams, kept: torch.Tensor | None, stride: tuple[int, ...]
    ) -> torch.Tensor:
        """x of the streams before, with the memory layout that it had."""
        assert kept is not None
        place = unpack_bits(kept, self.bits, streams.y.shape)
        return laid_out(self._compiled(_previous_x)(streams.y, place, _double(self.beta)), stride)

    def previous_y(self, streams: Streams, g: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
        """y of the streams before, with the memory layout that it had."""
        scale = _single(2.0**self.grid_bits)
        return laid_out(self._compiled(_previous_y)(streams.x, widened(g), scale), stride)

    def _compiled(self, function: Any) -> Any:
        return _compiled(function, self.backend)


def _double(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64)


def _single(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float32)


def _couple(
    x: torch.Tensor,
    y: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: torch.Tensor,
    per_place: torch.Tensor,
    half: torch.Tensor,
    wide: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scaled = x * beta
    next_y = scaled.floor()
    place = (scaled - next_y).to(torch.float32) * per_place + half
    next_x = (g * scale).round().to(torch.float64) + y
    return next_x, next_y, place.to(torch.int32 if wide else torch.uint8)


def _previous_x(y: torch.Tensor, place: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return (y / beta).ceil() + place


def _previous_y(x: torch.Tensor, g: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x - (g * scale).round()


@cache
def _compiled(function: Any, backend: Any) -> Any:
    return torch.compile(function, backend=backend)
