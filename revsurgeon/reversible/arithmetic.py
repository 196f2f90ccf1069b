"""The two arithmetics of the streams: float, and exact (integers on a grid).

Both offer the same operations, in the letters of Dr2Net (Zhao et al., CVPR 2024, equations 3 to 6):

    start      x_0, y_0 = beta * x_0
    next_x     x_i = G_i + y_{i-1}
    next_y     y_i = beta * x_{i-1}
    previous_x x_{i-1} = y_i / beta
    previous_y y_{i-1} = x_i - G_i
    merge      (x_N + y_N) / (1 + beta), or x_N

In float every inverse step can multiply the rounding error by 1/beta. In exact arithmetic the streams are
integers and the remainder of the multiplication by beta is kept, so nothing is ever lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from revsurgeon.errors import RevsurgeonError
from revsurgeon.reversible.bits import pack_bits, unpack_bits

BETA_BITS = 16
"""Exact arithmetic takes beta as a multiple of 2**-16; smaller ones are refused everywhere."""

DEFAULT_GRID_BITS = 20
"""Grid points per unit, as a power of two."""

_PART = 2**20
"""Elements that are worth kernels of their own: a GPU is busy with so many for longer than with a launch."""

_LIMIT = 2.0**51
# Integer-valued float64 is exact below 2**53. A quotient n / p with n below 2**51 and p up to 2**16
# lies at least 1/p from any integer it is not equal to, more than its rounding error, so ceil is exact.


@dataclass(frozen=True)
class Streams:
    """The pair (x, y): floating values, or integers held in float64."""

    x: torch.Tensor
    y: torch.Tensor


class Arithmetic(Protocol):
    """What a chain needs of an arithmetic."""

    @property
    def beta(self) -> float:
        """The beta that is applied."""

    def start(self, x: torch.Tensor) -> Streams:
        """Both streams at the start of a chain."""

    def value(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """x as the branch sees it."""

    def next_x(self, y: torch.Tensor, g: torch.Tensor, reuse: bool = False) -> torch.Tensor:
        """x of the next streams, in the memory layout of g, and with `reuse` perhaps in the memory of y."""

    def next_y(self, x: torch.Tensor, keep: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """y of the next streams, and what must be kept to come back (None in float, or if nobody will).

        With `keep` it is perhaps in the memory of x.
        """

    def previous_x(self, y: torch.Tensor, kept: torch.Tensor | None, stride: tuple[int, ...]) -> torch.Tensor:
        """x of the streams before, from y behind it, with the memory layout that it had."""

    def previous_y(self, x: torch.Tensor, g: torch.Tensor, out: torch.Tensor) -> None:
        """y of the streams before, from x behind it, written to `out`, which may be that x."""

    def merge(self, streams: Streams, rule: str) -> torch.Tensor:
        """The chain's output."""

    def checksum(self, x: torch.Tensor) -> torch.Tensor | None:
        """A number that differs when x does; None where equality cannot be expected."""


@dataclass(frozen=True)
class FloatArithmetic:
    """Streams of floating-point numbers: float64 for float64 input, otherwise float32, never lower."""

    beta: float

    def start(self, x: torch.Tensor) -> Streams:
        """Both streams at the start of a chain."""
        x = x.to(stream_dtype(x))
        return Streams(x, self.beta * x)

    def value(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """x as the branch sees it."""
        return x.to(dtype)

    def next_x(self, y: torch.Tensor, g: torch.Tensor, reuse: bool = False) -> torch.Tensor:
        """x of the next streams, in the memory layout of g."""
        return g.to(y.dtype) + laid_out(y, g.stride())

    def next_y(self, x: torch.Tensor, keep: bool = True) -> tuple[torch.Tensor, None]:
        """y of the next streams; nothing is kept."""
        return self.beta * x, None

    def previous_x(self, y: torch.Tensor, kept: torch.Tensor | None, stride: tuple[int, ...]) -> torch.Tensor:
        """x of the streams before, from y behind it, with the memory layout that it had."""
        return laid_out(y / self.beta, stride)

    def previous_y(self, x: torch.Tensor, g: torch.Tensor, out: torch.Tensor) -> None:
        """y of the streams before, from x behind it, written to `out`, which may be that x."""
        torch.sub(x, g.to(x.dtype), out=out)

    def merge(self, streams: Streams, rule: str) -> torch.Tensor:
        """The chain's output."""
        if rule == "last":
            return streams.x
        return (streams.x + laid_out(streams.y, streams.x.stride())).div_(1.0 + self.beta)

    def checksum(self, x: torch.Tensor) -> None:
        """A number that differs when x does; None where equality cannot be expected."""
        return None


@dataclass(frozen=True)
class ExactArithmetic:
    """Streams of integers on a grid of ``2**-grid_bits``, reversible bit for bit at any beta > 0.

    beta is p / 2**m with m <= 16. ``Y = floor(X * p / 2**m)``; the place r of X among the integers that
    share this Y takes ``bits`` bits an element, and ``X = ceil(Y * 2**m / p) + r``.

    Args:
        wanted_beta: rounded to the nearest multiple of 2**-16.
        grid_bits: grid points per unit, as a power of two.
    """

    wanted_beta: float
    grid_bits: int = DEFAULT_GRID_BITS
    p: int = field(init=False)
    m: int = field(init=False)

    def __post_init__(self) -> None:
        p, m = round(self.wanted_beta * 2**BETA_BITS), BETA_BITS
        while p % 2 == 0 and m > 0:
            p, m = p // 2, m - 1
        object.__setattr__(self, "p", p)
        object.__setattr__(self, "m", m)

    @property
    def beta(self) -> float:
        """The beta that is applied."""
        return self.p / 2**self.m

    @property
    def bits(self) -> int:
        """Bits an element that one segment keeps: ceil(log2(1 / beta))."""
        return (-(-(2**self.m) // self.p) - 1).bit_length()

    @property
    def largest(self) -> float:
        """The largest magnitude that a stream may have, in its own units."""
        return _LIMIT / self.p / 2**self.grid_bits

    def _on_grid(self, value: torch.Tensor) -> torch.Tensor:
        # Scaling by a power of two and rounding to integers are exact in float32 too, at half the traffic.
        return widened(value).mul(2.0**self.grid_bits).round_()

    def start(self, x: torch.Tensor) -> Streams:
        """Both streams at the start of a chain."""
        on_grid = self._on_grid(x).to(torch.float64)
        return Streams(on_grid, on_grid.mul(self.beta).floor_())

    def value(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """x as the branch sees it."""
        if dtype == torch.float16:  # integers overflow it
            return (x * 2.0**-self.grid_bits).to(dtype)
        return x.to(dtype, copy=True).mul_(2.0**-self.grid_bits)  # one rounding, then a power of two

    def next_x(self, y: torch.Tensor, g: torch.Tensor, reuse: bool = False) -> torch.Tensor:
        """x of the next streams, in the memory layout of g, and with `reuse` perhaps in the memory of y."""
        x = laid_out(y, g.stride())
        if not reuse:
            return self._on_grid(g).to(torch.float64).add_(x)
        for x_part, g_part in _parts(x, g):
            x_part.add_(self._on_grid(g_part))
        return x

    def next_y(self, x: torch.Tensor, keep: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``Y = floor(X * p / 2**m)``, in X's memory, and the place of X among those that share Y, packed."""
        if not keep:
            return x.mul(self.beta).floor_(), None
        place = torch.empty(x.shape, dtype=torch.uint8 if self.bits < 8 else torch.int32, device=x.device)
        for x_part, place_part in _parts(x, place):
            scaled = x_part.mul(self.beta)
            torch.floor(scaled, out=x_part)
            # The place is floor(f / p), where f / 2**m is the fraction that floor cut off: a multiple of
            # 2**-m, so exact in float32. f + 1/2 lies at least 1/(2p) away from any multiple of p, which is
            # more than the error of two float32 operations on numbers below 2**16 / p.
            fraction = scaled.sub_(x_part).to(torch.float32)
            number = fraction.mul_(2.0**self.m / self.p).add_(0.5 / self.p)
            # The cast to int8 is five times as fast as the one to uint8.
            place_part.copy_(number.to(torch.int8).view(torch.uint8) if self.bits < 8 else number)
            del scaled, fraction, number  # before there are those of the next part
        return x, pack_bits(place, self.bits)

    def previous_x(self, y: torch.Tensor, kept: torch.Tensor | None, stride: tuple[int, ...]) -> torch.Tensor:
        """x of the streams before, from y behind it, with the memory layout that it had."""
        assert kept is not None
        # beta = p / 2**m has no rounding error in float64
        x = y.to(torch.float64, copy=True).div_(self.beta).ceil_()
        for x_part, place_part in _parts(x, unpack_bits(kept, self.bits, x.shape)):
            x_part.add_(place_part)  # torch widens it first, on the CPU in memory that nobody counts
        return laid_out(x, stride)

    def previous_y(self, x: torch.Tensor, g: torch.Tensor, out: torch.Tensor) -> None:
        """y of the streams before, from x behind it, written to `out`, which may be that x."""
        for x_part, g_part, out_part in _parts(x, g, out):
            out_part.copy_(self._on_grid(g_part).to(torch.float64).neg_().add_(x_part))

    def merge(self, streams: Streams, rule: str) -> torch.Tensor:
        """The chain's output."""
        merged = streams.x.to(torch.float64, copy=True)
        if rule != "last":
            merged.add_(laid_out(streams.y, merged.stride())).div_(1.0 + self.beta)
        return merged.mul_(2.0**-self.grid_bits)

    def checksum(self, x: torch.Tensor) -> torch.Tensor:
        """A number that differs when x does; None where equality cannot be expected."""
        x = x.to(torch.float64)
        # A sum of the same shape and strides adds in the same order, so it is a function of x alone.
        return torch.stack([x.sum(), *(torch.aminmax(x) if x.numel() else (x.sum(), x.sum()))])

    def check_range(self, checksum: Sequence[float], name: str) -> None:
        """Refuse streams that do not fit the grid.

        Raises:
            RevsurgeonError: they are too large, infinite or NaN.
        """
        largest = self.magnitude(checksum) * 2.0**-self.grid_bits
        if not math.isfinite(checksum[0]) or not largest < self.largest:
            raise RevsurgeonError(
                f"the streams do not fit the grid of exact arithmetic (2^-{self.grid_bits}).",
                where=f"after {name}: magnitude {largest:.3g}, the grid holds up to {self.largest:.3g}",
                hint="Choose a coarser grid (rewire again with example inputs of this magnitude), "
                "or use float arithmetic. NaN or infinity comes from the network itself.",
            )

    def magnitude(self, checksum: Sequence[float]) -> float:
        """The largest integer of a stream, from its checksum."""
        return max(-checksum[1], checksum[2])


def coupled(arithmetic: Arithmetic, streams: Streams, g: torch.Tensor) -> Streams:
    """The next streams of a run that nobody comes back through."""
    return Streams(arithmetic.next_x(streams.y, g), arithmetic.next_y(streams.x, keep=False)[0])


def _parts(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of one shape, eight parts of each at most: what is computed in between takes less memory."""
    shape = tensors[0].shape
    count = min(8, -(-shape.numel() // _PART))
    dimension = next((d for d, size in enumerate(shape) if size > 1), None)
    if count < 2 or dimension is None:
        return iter([tensors])
    return zip(
        *(tensor.tensor_split(min(count, shape[dimension]), dimension) for tensor in tensors), strict=True
    )


def make_arithmetic(
    kind: str, beta: float, grid_bits: int = DEFAULT_GRID_BITS, *, backend: Any = None
) -> Arithmetic:
    """The arithmetic of a chain.

    Args:
        kind: "float" or "exact".
        beta: in [2**-16, 1].
        grid_bits: of exact arithmetic.
        backend: of torch.compile, for the operations of exact arithmetic; None does not compile them.
    """
    if kind != "exact":
        return FloatArithmetic(beta)
    if backend is not None:
        from revsurgeon.reversible.fused import FusedExactArithmetic

        return FusedExactArithmetic(beta, grid_bits, backend=backend)
    return ExactArithmetic(beta, grid_bits)


def grid_bits_for(largest: float) -> int:
    """The finest grid on which streams may grow 64-fold beyond the largest magnitude seen."""
    exponent = math.ceil(math.log2(largest)) if largest > 0 and math.isfinite(largest) else 0
    return max(4, min(40, 51 - BETA_BITS - 6 - exponent))


def stream_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of float streams that start at x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widened(value: torch.Tensor) -> torch.Tensor:
    """float64 as it is, everything else in float32."""
    return value if value.dtype == torch.float64 else value.to(torch.float32)


def laid_out(tensor: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """The same values with exactly these strides.

    ``x + y`` may come out with other strides than x, and a convolution may then choose another kernel,
    which gives other bits.
    """
    if tensor.stride() == stride or 0 in stride:
        return tensor
    result = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return result.copy_(tensor)
