"""The paper's equations written out a second time, in plain autograd: what the runtime is compared with.

Dr2Net (Zhao et al., CVPR 2024, equations 3 to 6), with y_0 = beta * x_0:

    x_i = G_i(x_{i-1}; alpha) + y_{i-1}          y_i = beta * x_{i-1}

Nothing of `revsurgeon.reversible` takes part but the coefficients: no tape, no arithmetic, no
autograd function. The segments' code is the one that equivalence at (1, 0) proves, except for the
addition of the skip, which alpha is in: that one is written here once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import nn

from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.record import SegmentCall, Values
from revsurgeon.rewiring.block import RewiredForward
from revsurgeon.rewiring.unrewired import calls_of, replaced_forwards, rewired_forwards, stream_of

EXACT_BETA_STEP = 2.0**-16
"""Exact arithmetic takes the nearest multiple of this as beta."""


Note = Callable[[str, torch.Tensor], None]


def beta_of(chain: Chain) -> float:
    """The beta that a chain's arithmetic applies."""
    if chain.arithmetic == "exact":
        return round(chain.beta / EXACT_BETA_STEP) * EXACT_BETA_STEP
    return chain.beta


def reference_g(call: SegmentCall, x: torch.Tensor, alpha: float) -> Values:
    """G(x; alpha) of a segment, with the addition of the skip written out here, and its side outputs."""
    return call.parted(_with_own_addition(call.function, x)(call.block, x, alpha, *call.extras))


def _with_own_addition(function: Callable[..., Any], x: torch.Tensor) -> Callable[..., Any]:
    """A segment's function that calls this file's addition instead of the runtime's."""
    own: dict[str, Any] = {"residual_add": lambda *a, **k: _skip_added(x, *a, **k), "scale_skip": _scaled}
    assert isinstance(function, FunctionType)
    namespace = dict(function.__globals__)
    for name in namespace:
        for ending, replacement in own.items():
            if name.endswith(ending):
                namespace[name] = replacement
    return FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )


def _skip_added(
    stream: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    alpha: float,
    skip: int,
    in_place: bool = False,
) -> torch.Tensor:
    """F(x) + alpha * x in the precision of the operands; the skip is told by being the stream itself.

    Only where neither operand is the stream (a scaled skip, or a later one of a whole block) is `skip`
    believed.
    """
    own = [isinstance(operand, torch.Tensor) and _is_stream(operand, stream) for operand in (left, right)]
    number = own.index(True) if sum(own) == 1 else skip
    x, branch = (left, right) if number == 0 else (right, left)
    result = torch.result_type(branch, x)
    if alpha == 1.0:
        return left + right
    if not isinstance(branch, torch.Tensor):
        branch = torch.as_tensor(branch, device=x.device)
    wide = torch.float64 if result == torch.float64 else torch.float32
    return (branch.to(wide) + alpha * x.to(wide)).to(result)


def _is_stream(operand: torch.Tensor, stream: torch.Tensor) -> bool:
    return operand.data_ptr() == stream.data_ptr() and operand.shape == stream.shape


def _scaled(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return x * alpha


class EquationForward:
    """A block's forward by the equations; the streams of a run are handed on through `Streams`."""

    def __init__(self, rewired: RewiredForward, runs: dict[int, Streams], note: Note) -> None:
        self.rewired = rewired
        self.runs = runs
        self.note = note

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block."""
        chain = self.rewired.chain
        run = self.runs.setdefault(id(chain), Streams(chain))
        x = stream_of(self.rewired, args, kwargs)
        if run.position == 0:
            run.begin(x)
        calls, finish = calls_of(self.rewired, args, kwargs)
        run.sides = []
        for call in calls:
            run.advance(call)
            self.note(call.name, run.x.to(run.seen))
        return finish(run.leave(), run.sides)


class Streams:
    """The streams of one chain's run, as ordinary tensors of ordinary autograd."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.alpha, self.beta = chain.alpha, beta_of(chain)
        self.position = 0
        self.sides: list[Any] = []  # of the block that is running

    def begin(self, x: torch.Tensor) -> None:
        """x_0 and y_0 = beta * x_0, in float32 or float64."""
        self.dtype = x.dtype
        self.seen = x.dtype  # as the branches see it: float32 under autocast
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            self.seen = torch.float32
        self.x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        self.y = self.beta * self.x

    def advance(self, call: SegmentCall) -> None:
        """The next x and y."""
        g, sides = reference_g(call, self.x.to(self.seen), self.alpha)
        self.sides += sides
        self.x, self.y = g.to(self.x.dtype) + self.y, self.beta * self.x

    def leave(self) -> torch.Tensor:
        """x for the next block, or behind the last one the chain's output."""
        self.position += 1
        if self.position < len(self.chain.blocks):
            return self.x.to(self.seen)
        self.position = 0
        x = self.x
        if self.chain.merge == "normalized":
            x = (x + self.y) / (1.0 + self.beta)
        return x.to(self.dtype)


@contextlib.contextmanager
def by_the_equations(model: nn.Module, note: Note = lambda name, x: None) -> Iterator[nn.Module]:
    """Have a rewired network run by the equations inside this context, at its chains' coefficients.

    Args:
        model: rewired.
        note: is told the name of every segment, and x behind it.
    """
    runs: dict[int, Streams] = {}
    forwards = {rewired: EquationForward(rewired, runs, note) for rewired in rewired_forwards(model)}
    with replaced_forwards(forwards):
        yield model
