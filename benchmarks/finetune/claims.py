"""What the papers say of finetuning, and what this project says, as comparisons of two arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from benchmarks.finetune.results import Results
from benchmarks.finetune.statistics import Spread, difference

MARGIN = 2.0
"""Points that count as kept."""

ENOUGH = 3
"""Pairs of runs from which a verdict is given."""

Side = tuple[str, str]
"""An arm and one of its figures."""

Kind = Literal["above", "keeps", "either"]


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
    kind: Kind

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


def _claims(table: str) -> Sequence[Claim]:
    """One claim a line: what it says, a bar, and two arms with the kind between them."""
    found = []
    for line in table.strip().splitlines():
        text, _, sides = line.rpartition(" | ")
        first, kind, second = sides.split()
        if kind not in get_args(Kind):
            raise ValueError(f"{kind!r} in {line!r} is no kind of claim")
        found.append(Claim(text, _side(first), _side(second), cast(Kind, kind)))
    return tuple(found)


def _side(name: str) -> Side:
    arm, _, at = name.partition("@")
    return arm, "score_at_1_0" if at else "score"


PAPERS: Sequence[Claim] = _claims("""
A hard switch to (0, 1) loses accuracy | conventional above re2
Pretrained weights are worth something even to the hard switch | re2 above re2-scratch
Dynamic coefficients keep it, in float as the paper computes | paper-float keeps conventional
Dynamic coefficients keep it, in exact arithmetic | paper-exact keeps conventional
Dynamic is better than the hard switch, float | paper-float above re2
Dynamic is better than the hard switch, exact | paper-exact above re2
Dynamic is better than staying at (1, .1), float | paper-float above fixed-float
Dynamic is better than training the head alone | paper-exact above frozen
The network at (1, .1) is close to the pretrained one | fixed-exact keeps conventional
""")
"""Re2TAL (Zhao et al., CVPR 2023) and Dr2Net (Zhao et al., CVPR 2024)."""

CHOICES: Sequence[Claim] = _claims("""
Order: alpha first | alpha-first either paper-exact
Order: beta first | beta-first either paper-exact
Policy: exponential | exponential either paper-exact
Policy: logarithmic | logarithmic either paper-exact
Frequency: at every step | every-step either paper-exact
Frequency: 5 times in all | rarely either paper-exact
Start: (.9, .1) | start-.9 either paper-exact
Start: (.95, .05) | start-.95 either paper-exact
Start: (.99, .01) | start-.99 either paper-exact
""")
"""What Dr2Net compares, each against both at once, linear, about 50 updates a training, from (1, .1)."""

OURS: Sequence[Claim] = _claims("""
Exact gradients are better than float ones, at (1, .1) for good | fixed-exact above fixed-float
Exact gradients are better than float ones, moving | paper-exact above paper-float
With exact gradients the coefficients need not move | fixed-exact keeps paper-exact
Staying at (.9, .1) keeps conventional accuracy | hold keeps conventional
Staying at the start that `dr2-hold` finds keeps it | hold-auto keeps conventional
`dr2-balanced` keeps conventional accuracy | balanced keeps conventional
`dr2-balanced` is better than the hard switch | balanced above re2
Which preset: `dr2-hold` against `dr2-balanced` | hold-auto either balanced
A start on alpha = 1 - beta is better than (1, .1) | start-.9 above paper-exact
A smaller beta to start with is better | start-.99 above start-.9
Stayed at (.9, .1) and set to (1, 0) afterwards, it keeps its accuracy | hold@(1,0) keeps hold
`dr2-hold`, set to (1, 0) afterwards, keeps its accuracy | hold-auto@(1,0) keeps hold-auto
`dr2-balanced`, set to (1, 0) afterwards, keeps its accuracy | balanced@(1,0) keeps balanced
""")
"""What this project's design rests on."""
