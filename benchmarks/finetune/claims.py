"""What the papers say of finetuning, and what this project says, as comparisons of two arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.finetune.results import Results
from benchmarks.finetune.statistics import Spread, difference

MARGIN = 2.0
"""Points that count as kept."""

ENOUGH = 3
"""Pairs of runs from which a verdict is given."""

Side = tuple[str, str]
"""An arm and one of its figures."""


@dataclass(frozen=True)
class Claim:
    """The first side against the second.

    Attributes:
        text: the claim.
        first: the arm that it is about.
        second: the arm that it is compared with.
        kind: "above": the first is better. "keeps": the first loses less than `MARGIN` points.
            "either": a question without an expected answer.
    """

    text: str
    first: Side
    second: Side
    kind: Literal["above", "keeps", "either"]

    def found(self, results: Results) -> tuple[Spread | None, str]:
        """The difference, and what it says.

        "confirmed", "not seen" or "opposite"; of a question "better", "worse" or "no difference seen"; or why
        there is no verdict.
        """
        spread = difference(results, self.first, self.second)
        if spread is None:
            return None, "not run yet"
        if spread.count < ENOUGH or spread.interval is None:
            return spread, "too few runs"
        low, high = spread.interval
        if self.kind == "either":
            return spread, "better" if low > 0.0 else "worse" if high < 0.0 else "no difference seen"
        if low > (0.0 if self.kind == "above" else -MARGIN):
            return spread, "confirmed"
        return spread, "opposite" if high < 0.0 else "not seen"


def _above(text: str, first: str, second: str) -> Claim:
    return Claim(text, (first, "score"), (second, "score"), "above")


def _keeps(text: str, first: str, second: str) -> Claim:
    return Claim(text, (first, "score"), (second, "score"), "keeps")


PAPERS: Sequence[Claim] = (
    _above("A hard switch to (0, 1) loses accuracy", "conventional", "re2"),
    _above("Pretrained weights are worth something even to the hard switch", "re2", "re2-scratch"),
    _keeps("Dynamic coefficients keep it, in float as the paper computes", "paper-float", "conventional"),
    _keeps("Dynamic coefficients keep it, in exact arithmetic", "paper-exact", "conventional"),
    _above("Dynamic is better than the hard switch, float", "paper-float", "re2"),
    _above("Dynamic is better than the hard switch, exact", "paper-exact", "re2"),
    _above("Dynamic is better than staying at (1, .1), float", "paper-float", "fixed-float"),
    _above("Dynamic is better than training the head alone", "paper-exact", "frozen"),
    _keeps("The network at (1, .1) is close to the pretrained one", "fixed-exact", "conventional"),
)
"""Re2TAL (Zhao et al., CVPR 2023) and Dr2Net (Zhao et al., CVPR 2024)."""


def _either(text: str, first: str, second: str = "paper-exact") -> Claim:
    return Claim(text, (first, "score"), (second, "score"), "either")


CHOICES: Sequence[Claim] = (
    _either("Order: alpha first", "alpha-first"),
    _either("Order: beta first", "beta-first"),
    _either("Policy: exponential", "exponential"),
    _either("Policy: logarithmic", "logarithmic"),
    _either("Frequency: at every step", "every-step"),
    _either("Frequency: 5 times in all", "rarely"),
    _either("Start: (.9, .1)", "start-.9"),
    _either("Start: (.95, .05)", "start-.95"),
    _either("Start: (.99, .01)", "start-.99"),
)
"""What Dr2Net compares, each against both at once, linear, 25 updates, from (1, .1)."""

OURS: Sequence[Claim] = (
    _above("Exact gradients are better than float ones, at (1, .1) for good", "fixed-exact", "fixed-float"),
    _above("Exact gradients are better than float ones, moving", "paper-exact", "paper-float"),
    _keeps("With exact gradients the coefficients need not move", "fixed-exact", "paper-exact"),
    _keeps("`dr2-hold` keeps conventional accuracy", "hold", "conventional"),
    _keeps("`dr2-balanced` keeps conventional accuracy", "balanced", "conventional"),
    _above("`dr2-balanced` is better than the hard switch", "balanced", "re2"),
    _above("A start on alpha = 1 - beta is better than (1, .1)", "start-.9", "paper-exact"),
    _above("A smaller beta to start with is better", "start-.99", "start-.9"),
    Claim(
        "`dr2-hold`, set to (1, 0) afterwards, keeps its accuracy",
        ("hold", "score_at_1_0"),
        ("hold", "score"),
        "keeps",
    ),
    Claim(
        "`dr2-balanced`, set to (1, 0) afterwards, keeps its accuracy",
        ("balanced", "score_at_1_0"),
        ("balanced", "score"),
        "keeps",
    ),
)
"""What this project's design rests on."""
