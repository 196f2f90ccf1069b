"""Read and change the coefficients of a rewired network, and switch how it backpropagates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from revsurgeon.errors import UnsupportedModelError
from revsurgeon.reversible.chain import Chain


def chains(model: nn.Module) -> list[Chain]:
    """The chains of a rewired network, in the order of its modules.

    Each has ``.name``, ``.blocks``, ``.segments``, ``.alpha``, ``.beta``, ``.merge`` and ``.arithmetic``.
    The list is empty for a network that was not rewired.
    """
    found: dict[int, Chain] = {}
    for module in model.modules():
        chain = getattr(module.__dict__.get("forward"), "chain", None)
        if isinstance(chain, Chain):
            found[id(chain)] = chain
    return list(found.values())


def set_coefficients(model: nn.Module, alpha: float | None = None, beta: float | None = None) -> None:
    """Set the coefficients of all chains, for the forwards that begin from now on.

    Args:
        model: a rewired network.
        alpha: coefficient of the original skips, in [0, 1]; None leaves it.
        beta: coefficient of the added skips: 0 (the pretrained network, at alpha = 1; not for reversible
            training), or from 2**-16 to 1; None leaves it.

    Raises:
        UnsupportedModelError: the network was not rewired.
        RevsurgeonError: a value out of range.
    """
    for chain in some_chains(model):
        chain.set(alpha, beta)


def get_coefficients(model: nn.Module) -> tuple[float, float]:
    """The coefficients (alpha, beta) of the first chain.

    Raises:
        UnsupportedModelError: the network was not rewired.
    """
    first = some_chains(model)[0]
    return first.alpha, first.beta


@contextlib.contextmanager
def stored_activations(model: nn.Module) -> Iterator[None]:
    """Backpropagate conventionally, through the same rewired network, inside this context.

    Forward and backward must both be inside or both outside.
    """
    found = some_chains(model)
    before = [chain.stored for chain in found]
    for chain in found:
        chain.stored = True
    try:
        yield
    finally:
        for chain, stored in zip(found, before, strict=True):
            chain.stored = stored


def compile_segments(model: nn.Module, **options: Any) -> None:
    """Compile the segments of all chains with torch.compile, each when it is next called, and exact streams.

    The network around the chains is left alone (`torch.compile(model)` compiles that, and runs the chains as
    they are). alpha is an argument of the compiled code, so a schedule that moves it compiles nothing anew.
    Compiled code rounds otherwise than the network's own: at (1, 0) the result is near the pretrained
    network's, no longer equal to it. Reversible and stored gradients still agree bit for bit, as both run it.

    Args:
        model: a rewired network.
        options: of torch.compile, e.g. ``backend="inductor"``, ``mode="max-autotune-no-cudagraphs"``.

    Raises:
        UnsupportedModelError: the network was not rewired.
    """
    for chain in some_chains(model):
        chain.compile_options = dict(options)


def some_chains(model: nn.Module) -> list[Chain]:
    """The chains of a network that must have some.

    Raises:
        UnsupportedModelError: it was not rewired.
    """
    found = chains(model)
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} was not rewired.",
            hint="Rewire it first (revsurgeon.rewire), or load a converted checkpoint (revsurgeon.load).",
        )
    return found
