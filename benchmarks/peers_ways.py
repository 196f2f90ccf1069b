"""The ways to train that are put side by side: one `Way` is one row of the table.

A way prepares a plain network. What comes back is a `Candidate`, which can compute the same function with
stored activations too: that is what its gradients are compared with.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import revsurgeon as rs
from benchmarks.peers_couplings import (
    Coupled,
    MemCNN,
    Momentum,
    NotMeasured,
    RevLib,
    RevTorch,
    couple,
    needs_branches,
)
from benchmarks.peers_networks import Subject
from revsurgeon.memory.strategies import CHUNKS
from revsurgeon.recipes import load_recipe
from revsurgeon.reversible.arithmetic import make_arithmetic
from revsurgeon.reversible.chain import Chain
from revsurgeon.rewiring import rewire_with_checks


@dataclass
class Candidate:
    """A network that is ready to be trained in one way.

    Attributes:
        network: is called.
        stored: a context in which it computes the same with stored activations.
    """

    network: Callable[..., Any]
    stored: Callable[[Candidate], contextlib.AbstractContextManager[None]]


Prepare = Callable[[Subject, nn.Module, Any, bool], Candidate]
"""(subject, plain network, inputs, whether only its stored version is wanted) -> Candidate."""


@dataclass(frozen=True)
class Way:
    """One row.

    Attributes:
        title: for people.
        computes: which function it trains, in words.
        prepare: makes the candidate.
    """

    title: str
    computes: str
    prepare: Prepare


SOURCE = "the source network"


def _as_it_is(subject: Subject, network: nn.Module, inputs: Any, reference: bool) -> Candidate:
    return Candidate(network, lambda _: contextlib.nullcontext())


# -- torch's own -----------------------------------------------------------------------------------

MATRIX_PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]
"""What selective checkpointing saves; all else is computed again."""


def _checkpoint(
    subject: Subject, network: nn.Module, inputs: Any, reference: bool, **options: Any
) -> Candidate:
    blocks = [network.get_submodule(path) for path in subject.blocks(network)]
    for block in blocks:
        block.__dict__["forward"] = functools.partial(
            checkpoint, block.forward, use_reentrant=False, **options
        )

    @contextlib.contextmanager
    def plain(_: Candidate) -> Iterator[None]:
        patched = [block.__dict__.pop("forward") for block in blocks]
        try:
            yield
        finally:
            for block, forward in zip(blocks, patched, strict=True):
                block.__dict__["forward"] = forward

    return Candidate(network, plain)


def _selective(subject: Subject, network: nn.Module, inputs: Any, reference: bool) -> Candidate:
    contexts = functools.partial(create_selective_checkpoint_contexts, MATRIX_PRODUCTS)
    return _checkpoint(subject, network, inputs, reference, context_fn=contexts)


def _compiled(budget: float) -> Prepare:
    def prepare(subject: Subject, network: nn.Module, inputs: Any, reference: bool) -> Candidate:
        from torch._functorch import config as functorch_config
        from torch._inductor import config as inductor_config

        functorch_config.activation_memory_budget = budget  # read when the network is first called
        # Eager's own random numbers, so that the network without compilation is a reference for dropout.
        inductor_config.fallback_random = True
        candidate = Candidate(torch.compile(network), plain)
        return candidate

    @contextlib.contextmanager
    def plain(candidate: Candidate) -> Iterator[None]:
        compiled: Any = candidate.network
        candidate.network = compiled._orig_mod
        try:
            yield
        finally:
            candidate.network = compiled

    return prepare


# -- the registry's --------------------------------------------------------------------------------


def _coupled(make: Callable[[Sequence[nn.Module]], Coupled], *, adds: bool = True) -> Prepare:
    """A library.

    Args:
        make: joins functions.
        adds: it has no other rule than adding.
    """

    def prepare(subject: Subject, network: nn.Module, inputs: Any, reference: bool) -> Candidate:
        if adds:
            needs_branches(subject)
        couple(subject, network, make)
        return Candidate(network, conventional)

    @contextlib.contextmanager
    def conventional(candidate: Candidate) -> Iterator[None]:
        assert isinstance(candidate.network, nn.Module)
        rows = [module for module in candidate.network.modules() if isinstance(module, Coupled)]
        for row in rows:
            row.conventional = True
        try:
            yield
        finally:
            for row in rows:
                row.conventional = False

    return prepare


def _momentum(gamma: float) -> Prepare:
    def prepare(subject: Subject, network: nn.Module, inputs: Any, reference: bool) -> Candidate:
        residual = subject.branches is not None
        make = functools.partial(Momentum, gamma=gamma, residual=residual)
        return _coupled(make, adds=False)(subject, network, inputs, reference)

    return prepare


# -- revsurgeon ------------------------------------------------------------------------------------


def reversible(
    alpha: float, beta: float, arithmetic: str, chunks: int = 1, granularity: str = "segment"
) -> Prepare:
    """A rewired network at given coefficients."""

    def prepare(subject: Subject, network: nn.Module, inputs: Any, reference: bool) -> Candidate:
        if chunks > 1 and not hasattr(Chain, "chunks"):
            raise NotMeasured("does not apply", "this version of revsurgeon has no chunks")
        applied = beta
        recipe = load_recipe(None, "dr2").model_copy(update={"granularity": granularity})
        if reference:  # in float64, where the grid of exact arithmetic is not part of the function
            rewire_with_checks(network, inputs, recipe, "float", check=False)
            applied = make_arithmetic(arithmetic, beta).beta  # exact arithmetic rounds it to 2^-16
        else:
            rs.rewire(network, example_inputs=inputs, recipe=recipe, arithmetic=arithmetic)
        rs.set_coefficients(network, alpha, applied)
        for chain in rs.chains(network):
            chain.merge = "normalized"  # keeps no less than the other rule
            chain.arithmetic = "float" if reference else arithmetic
            if chunks > 1:
                chain.chunks = chunks
        return Candidate(network, lambda _: rs.stored_activations(network))

    return prepare


WAYS: dict[str, Way] = {
    "stored": Way("stored", SOURCE, _as_it_is),
    "checkpoint": Way("torch.utils.checkpoint, a block each", SOURCE, _checkpoint),
    "selective": Way("selective checkpointing, matrix products saved", SOURCE, _selective),
    "budget-0.5": Way("torch.compile, memory budget .5", SOURCE, _compiled(0.5)),
    "budget-0.2": Way("torch.compile, memory budget .2", SOURCE, _compiled(0.2)),
    "momentumnet-0.9": Way("momentumnet, gamma .9", "v = .9 v + .1 f(x); x = x + v", _momentum(0.9)),
    "momentumnet-0.1": Way("momentumnet, gamma .1", "v = .1 v + .9 f(x); x = x + v", _momentum(0.1)),
    "memcnn": Way("memcnn", "the function of (0, 1)", _coupled(MemCNN)),
    "revlib": Way("revlib", "the function of (0, 1)", _coupled(RevLib)),
    "revtorch": Way("RevTorch", "the function of (0, 1)", _coupled(RevTorch)),
    "re2": Way("revsurgeon re2: float at (0, 1)", "(0, 1)", reversible(0.0, 1.0, "float")),
    "float-0.1": Way("revsurgeon float at (.9, .1)", "(.9, .1)", reversible(0.9, 0.1, "float")),
    "exact-0.1": Way("revsurgeon exact at (.9, .1)", "(.9, .1)", reversible(0.9, 0.1, "exact")),
    "exact-0.5": Way("revsurgeon exact at (.5, .5)", "(.5, .5)", reversible(0.5, 0.5, "exact")),
    "chunked": Way(
        f"revsurgeon exact at (.9, .1), {CHUNKS} chunks",
        "(.9, .1)",
        reversible(0.9, 0.1, "exact", chunks=CHUNKS),
    ),
    "blocks": Way(
        "revsurgeon exact at (.9, .1), whole blocks",
        "(.9, .1)",
        reversible(0.9, 0.1, "exact", granularity="block"),
    ),
}
COMPILED = ("budget-0.5", "budget-0.2")
