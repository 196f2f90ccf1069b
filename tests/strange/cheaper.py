"""Examine a network in a fifth of the time, almost all of which goes into tracing its blocks on fake tensors.

Blocks of one plan, the copies and pickles that are made of them, and a second attempt at rewiring are all
traced anew by the package, as they must be. A trace is a function of what `_described` lists, and nothing
writes to it afterwards, so one is enough here. And these networks are so small that their own values are
cheaper than fake ones; the package itself takes them where fake ones do not work. Nothing that is examined
is left out, and a part of the networks is examined without this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.trace import Trace, trace_block
from revsurgeon.rewiring.block import RewiredForward

CONSTANTS = (bool, int, float, str, type(None))


@contextlib.contextmanager
def cheaper() -> Iterator[None]:
    """Have blocks that are alike share a trace, made on values, inside this context."""
    known: dict[Any, Trace] = {}

    def remembered(
        block: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        inline: frozenset[str] | None = None,
    ) -> Trace:
        general = (*_described(block, args, kwargs), inline)
        special = (general, _shapes((args, dict(kwargs))))
        if general not in known or (known[general].specialised and special not in known):
            known[general] = known[special] = trace_block(block, forward, args, kwargs, inline=inline)
        return known[special] if known[general].specialised else known[general]

    with (
        mock.patch("revsurgeon.anatomy.inspect.trace_block", remembered),
        mock.patch("revsurgeon.rewiring.block.trace_block", remembered),
        mock.patch("revsurgeon.anatomy.probe.FakeTensorMode", _NoFakes),
        mock.patch.object(RewiredForward, "_cut_on_fakes", _cut_on_values),
    ):
        yield


class _NoFakes(contextlib.nullcontext[None]):
    """In place of FakeTensorMode."""

    def __init__(self, **options: Any) -> None:
        super().__init__()

    def from_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A real one."""
        return tensor.clone()


def _cut_on_values(forward: RewiredForward, args: Any, kwargs: Any, leaves: list[Any], stream: int) -> Any:
    return forward._cut_on_values(args, kwargs, leaves[stream], stream)


def _described(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that the trace of a block of `tests.strange.networks` depends on."""
    modules = tuple(
        (
            path,
            type(module),
            *((name, value) for name, value in vars(module).items() if isinstance(value, CONSTANTS)),
            getattr(module, "plan", None),
            *(len(hooks) for name, hooks in vars(module).items() if name.endswith("_hooks") and hooks),
            *((name, _kind(value)) for name, value in module._parameters.items()),
            *((name, _kind(value)) for name, value in module._buffers.items()),
        )
        for path, module in block.named_modules()
    )
    leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
    places = tuple(next(i for i, other in enumerate(leaves) if other is leaf) for leaf in leaves)
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return modules, structure, tuple(map(_argument, leaves)), places, modes


def _kind(value: torch.Tensor | None) -> Any:
    """Of a weight; nothing in these networks decides by a dtype."""
    return None if value is None else (tuple(value.shape), value.requires_grad)


def _argument(value: Any) -> Any:
    """Sizes of a batch are left open, as the package leaves them where a trace is not specialised."""
    if not isinstance(value, torch.Tensor):
        return type(value), value
    return type(value), value.ndim, tuple(value.shape[1:]), value.is_contiguous(), value.requires_grad


def _shapes(tree: Any) -> Any:
    return tuple(tuple(t.shape) for t in pytree.tree_leaves(tree) if isinstance(t, torch.Tensor))
