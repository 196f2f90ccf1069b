"""A rewired network as an inference program sees it: fixed coefficients, no gradients, plain values out.

Without gradients a run of a chain keeps no tape and calls no autograd function: what is left of the runtime
are the equations, in the chain's arithmetic, as operations on tensors. torch.export can follow these.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.errors import RevsurgeonError, UsageError
from revsurgeon.reversible.arithmetic import ExactArithmetic
from revsurgeon.reversible.chain import SMALLEST_BETA, Chain
from revsurgeon.reversible.coefficients import get_coefficients, some_chains
from revsurgeon.rewiring.measure import Arguments, at_coefficients, called, in_mode, tensors_of


@contextlib.contextmanager
def for_inference(
    model: nn.Module, alpha: float | None, beta: float | None, arithmetic: str | None
) -> Iterator[None]:
    """Have a rewired network in evaluation mode at these coefficients, its segments whole and not compiled.

    Args:
        model: rewired.
        alpha, beta, arithmetic: None leaves the network's own.

    Raises:
        UsageError: a value that is out of range.
    """
    if arithmetic not in (None, "float", "exact"):
        raise UsageError(f"arithmetic {arithmetic!r} is not float or exact.")
    now = get_coefficients(model)
    found = some_chains(model)
    options = [(chain.chunks, chain.compile_options) for chain in found]
    point = (now[0] if alpha is None else alpha, now[1] if beta is None else beta)
    if arithmetic == "float" and found[0].arithmetic == "exact" and SMALLEST_BETA <= point[1] <= 1:
        # Exact arithmetic applies a multiple of 2**-16; the float program shall compute with the same beta.
        point = (point[0], ExactArithmetic(point[1]).beta)
    try:
        for chain in found:
            chain.chunks, chain.compile_options = 1, None
            _check(chain, *point)
        with at_coefficients(model, *point, arithmetic=arithmetic), in_mode(model, False), torch.no_grad():
            yield
    finally:
        for chain, (chunks, compiled) in zip(found, options, strict=True):
            chain.chunks, chain.compile_options = chunks, compiled


def _check(chain: Chain, alpha: float, beta: float) -> None:
    try:
        replace(chain).set(alpha, beta)
    except RevsurgeonError as error:
        raise UsageError(error.what, hint=error.hint) from None


@contextlib.contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Have a network return tensors, tuples and dictionaries instead of classes of its library.

    A program that returned such a class could be loaded only where that library is installed.
    """
    replaced = model.__dict__.get("forward")
    forward = model.forward

    @functools.wraps(forward)
    def plain_forward(*args: Any, **kwargs: Any) -> Any:
        return _plain(forward(*args, **kwargs))

    model.__dict__["forward"] = plain_forward
    try:
        yield
    finally:
        if replaced is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = replaced


def outputs_of(model: nn.Module, arguments: Arguments) -> list[torch.Tensor]:
    """The tensors that the network gives out."""
    return tensors_of(called(model, arguments))


def _plain(output: Any) -> Any:
    """The same values in dictionaries and tuples; what holds no tensor is left out of a dictionary."""
    if output is None or isinstance(output, torch.Tensor):
        return output
    if isinstance(output, Mapping):
        values = {str(name): _plain(value) for name, value in output.items()}
        return {name: value for name, value in values.items() if tensors_of(value)}
    if isinstance(output, (tuple, list)):
        return tuple(_plain(value) for value in output)
    return tuple(tensors_of(pytree.tree_leaves(output)))  # a cache, for example
