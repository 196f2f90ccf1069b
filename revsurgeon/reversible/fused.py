"""Exact arithmetic as single kernels, made by torch.compile, for networks with compiled segments.

They give the same bits as the ones they replace: every step but the rounding to the grid is exact.
All that a schedule moves is an argument (a tensor without dimensions), so nothing is compiled anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from revsurgeon.reversible.arithmetic import ExactArithmetic, laid_out, widened
from revsurgeon.reversible.bits import pack_bits, unpack_bits


@dataclass(frozen=True)
class FusedExactArithmetic(ExactArithmetic):
    """`ExactArithmetic` with one kernel for each way of a step.

    Args:
        backend: torch.compile's.
    """

    backend: Any = "inductor"

    def next_x(self, y: torch.Tensor, g: torch.Tensor, reuse: bool = False) -> torch.Tensor:
        """x of the next streams, in the memory layout of g, and with `reuse` perhaps in the memory of y."""
        x = laid_out(y, g.stride())
        if x is y and not reuse:
            x = y.clone()
        self._compiled(_add_on_grid)(x, widened(g), _single(2.0**self.grid_bits))
        return x

    def next_y(self, x: torch.Tensor, keep: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """y of the next streams, in the memory of x, and what must be kept to come back."""
        if not keep:
            return super().next_y(x, keep)
        per_place, half = _single(2.0**self.m / self.p), _single(0.5 / self.p)
        place = self._compiled(_next_y)(x, _double(self.beta), per_place, half, self.bits > 8)
        return x, pack_bits(place.contiguous(), self.bits)

    def previous_x(self, y: torch.Tensor, kept: torch.Tensor | None, stride: tuple[int, ...]) -> torch.Tensor:
        """x of the streams before, from y behind it, with the memory layout that it had."""
        assert kept is not None
        place = unpack_bits(kept, self.bits, y.shape)
        return laid_out(self._compiled(_previous_x)(y, place, _double(self.beta)), stride)

    def previous_y(self, x: torch.Tensor, g: torch.Tensor, out: torch.Tensor) -> None:
        """y of the streams before, from x behind it, written to `out`, which may be that x."""
        if out is not x:
            out.copy_(x)
        self._compiled(_take_on_grid)(out, widened(g), _single(2.0**self.grid_bits))

    def _compiled(self, function: Any) -> Any:
        return _compiled(function, self.backend)


def _double(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64)


def _single(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float32)


def _add_on_grid(stream: torch.Tensor, g: torch.Tensor, scale: torch.Tensor) -> None:
    stream.copy_(stream.to(torch.float64) + (g * scale).round().to(torch.float64))


def _take_on_grid(stream: torch.Tensor, g: torch.Tensor, scale: torch.Tensor) -> None:
    stream.copy_(stream.to(torch.float64) - (g * scale).round().to(torch.float64))


def _next_y(
    x: torch.Tensor, beta: torch.Tensor, per_place: torch.Tensor, half: torch.Tensor, wide: bool
) -> torch.Tensor:
    scaled = x * beta
    y = scaled.floor()
    x.copy_(y)
    place = (scaled - y).to(torch.float32) * per_place + half
    return place.to(torch.int32 if wide else torch.uint8)


def _previous_x(y: torch.Tensor, place: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return (y.to(torch.float64) / beta).ceil() + place


@cache
def _compiled(function: Any, backend: Any) -> Any:
    return torch.compile(function, backend=backend)
