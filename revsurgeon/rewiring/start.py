"""Where finetuning starts: how far a rewired network's output is from the pretrained one's at a point, and
the search for the largest beta at which that is little (`start: auto`).

It looks on the line alpha = 1 - beta, where z = x + y, the pretrained network's residual stream, is conserved
(z_i = z_{i-1} + F_i(x_{i-1})), so that the drift shrinks with beta.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from revsurgeon.recipes import Recipe
from revsurgeon.reversible.arithmetic import grid_bits_for
from revsurgeon.reversible.coefficients import chains, set_coefficients
from revsurgeon.rewiring.measure import Arguments, distance, output_tensors, tensors_of

LADDER = (0.1, 0.05, 0.02, 0.01, 0.005)
"""The betas that `start: auto` tries, in this order."""

MAX_DRIFT = 0.05
"""How far the output may be from the pretrained network's, if the recipe does not say."""

UNMEASURED = (1.0 - LADDER[0], LADDER[0])
"""Where `start: auto` starts when nothing may be measured."""


@dataclass(frozen=True)
class Rung:
    """One point (alpha, beta) that was measured.

    Attributes:
        merge: the rule with less drift, among those that the recipe allows.
        drift: relative distance of the output from the pretrained network's.
        grid_bits: of exact arithmetic, for the magnitudes seen there.
    """

    alpha: float
    beta: float
    merge: str
    drift: float
    grid_bits: int


@dataclass(frozen=True)
class StartSearch:
    """What `start: auto` measured.

    Attributes:
        max_drift: what was allowed.
        met: whether a rung stays within it; if none does, the start is the one with the least drift.
        rungs: in the order in which they were tried; nothing is measured behind the first that fits.
    """

    max_drift: float
    met: bool
    rungs: tuple[Rung, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the grids are left out, because only the chosen one matters."""
        rungs = [{"beta": r.beta, "merge": r.merge, "drift": r.drift} for r in self.rungs]
        return {"max_drift": self.max_drift, "met": self.met, "measured": rungs}


def find_start(
    model: nn.Module, arguments: Arguments, expected: list[torch.Tensor], recipe: Recipe
) -> tuple[Rung, StartSearch | None]:
    """Go to the recipe's start point, searched for if it says so, with the merge rule and grid for it.

    Args:
        model: freshly attached.
        arguments: what to measure on.
        expected: the pretrained network's outputs on them.
        recipe: what to start with, and which merge rules there are to choose from.

    Returns:
        The start, and what was measured to find it; None where it was given.
    """
    if recipe.start != "auto":
        rung = _measure(model, arguments, expected, recipe, recipe.start.alpha, recipe.start.beta)
        return _go_to(model, rung), None
    limit = MAX_DRIFT if recipe.max_drift is None else recipe.max_drift
    rungs = []
    for beta in LADDER:
        rungs.append(_measure(model, arguments, expected, recipe, 1.0 - beta, beta))
        if rungs[-1].drift <= limit:
            break
    chosen = min(rungs, key=lambda rung: rung.drift) if rungs[-1].drift > limit else rungs[-1]
    return _go_to(model, chosen), StartSearch(limit, chosen.drift <= limit, tuple(rungs))


def _measure(
    model: nn.Module,
    arguments: Arguments,
    expected: list[torch.Tensor],
    recipe: Recipe,
    alpha: float,
    beta: float,
) -> Rung:
    set_coefficients(model, alpha, beta)
    drifts = {}
    with largest_values(model) as largest:
        for rule in ("normalized", "last") if recipe.merge == "auto" else (recipe.merge,):
            for chain in chains(model):
                chain.merge = rule
            drifts[rule] = distance(output_tensors(model, arguments), expected)
    merge = min(drifts, key=lambda rule: drifts[rule])
    return Rung(alpha, beta, merge, drifts[merge], grid_bits_for(max(largest.values(), default=1.0)))


def _go_to(model: nn.Module, rung: Rung) -> Rung:
    set_coefficients(model, rung.alpha, rung.beta)
    for chain in chains(model):
        chain.merge, chain.grid_bits = rung.merge, rung.grid_bits
    return rung


@contextlib.contextmanager
def largest_values(model: nn.Module) -> Iterator[dict[str, float]]:
    """The largest magnitude of x behind every block, while this context is open."""
    largest: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if "forward" in module.__dict__ and getattr(module.__dict__["forward"], "chain", None) is not None:

            def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                top = max(
                    (
                        float(t.detach().abs().max())
                        for t in tensors_of((args, output))
                        if t.is_floating_point()
                    ),
                    default=0,
                )
                largest[name] = max(largest.get(name, 0.0), top)

            handles.append(module.register_forward_hook(note))
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()
