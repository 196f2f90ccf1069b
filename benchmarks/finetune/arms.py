"""The ways to finetune that are compared: which weights, what is trained, and with which recipe.

Everything else (learning rate, steps, batches, order of the data, start of the head) is the same for all of
them. Where the papers give a time in epochs, it is a share of the training here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import revsurgeon as rs

TAU = 0.5
"""The paper's end epoch, as a share of the training: half of it is trained at the end point."""

UPDATES = 50
"""The paper's eta: about so many updates in a whole training, half of them until tau."""


@dataclass(frozen=True)
class Arm:
    """One way to finetune.

    Attributes:
        name: as the command line and the results have it.
        text: what it is, for the page.
        preset: the recipe that it starts from; None leaves the network conventional.
        changes: fields of that recipe that are other here.
        pretrained: begin with the pretrained weights; random ones if False.
        frozen: train the head alone.
        updates: how often the coefficients move in a whole training; None: at every step.
    """

    name: str
    text: str
    preset: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = True
    frozen: bool = False
    updates: int | None = None

    def recipe(self, steps: int) -> rs.Recipe | None:
        """The recipe for a training of so many steps; None for a conventional network."""
        if self.preset is None:
            return None
        fields = {**rs.load_recipe(self.preset).model_dump(exclude_none=True), **self.changes}
        fields["name"] = self.name
        if "schedule" in fields:
            every = 1 if self.updates is None else max(1, steps // self.updates)
            fields["schedule"] = {**fields["schedule"], "update_every": every}
        return rs.Recipe.model_validate(fields)


def _paper(
    name: str,
    text: str,
    *,
    start: tuple[float, float] = (1.0, 0.1),
    arithmetic: str = "exact",
    updates: int | None = UPDATES,
    **schedule: str,
) -> Arm:
    """Dr2Net's schedule to (.3, .7), with something changed."""
    moves = {"policy": "linear", "order": "simultaneous", **schedule, "until": {"fraction": TAU}}
    point = {"alpha": start[0], "beta": start[1]}
    changes = {"start": point, "arithmetic": arithmetic, "schedule": moves}
    return Arm(name, text, "dr2-paper", changes, updates=updates)


def _fixed(name: str, text: str, alpha: float, arithmetic: str = "exact") -> Arm:
    """Stays at (alpha, .1), wherever the preset would start."""
    point = {"alpha": alpha, "beta": 0.1}
    return Arm(name, text, "dr2-hold", {"start": point, "max_drift": None, "arithmetic": arithmetic})


_ARMS = (
    Arm("conventional", "all weights, the network as it was"),
    Arm("frozen", "the head alone", frozen=True),
    Arm("re2-scratch", "(0, 1) from random weights", "re2", pretrained=False),
    Arm("re2", "hard switch to (0, 1)", "re2"),
    _fixed("fixed-float", "stays at (1, .1), float", 1.0, "float"),
    _fixed("fixed-exact", "stays at (1, .1), exact", 1.0),
    _paper("paper-float", "(1, .1) to (.3, .7), float", arithmetic="float"),
    _paper("paper-exact", "(1, .1) to (.3, .7), exact"),
    Arm("balanced", "preset dr2-balanced, exact", "dr2-balanced", {"arithmetic": "exact"}),
    _fixed("hold", "stays at (.9, .1), exact", 0.9),
    Arm(
        "hold-auto",
        "preset dr2-hold: stays at the start that it finds, exact",
        "dr2-hold",
        {"start": "auto", "max_drift": 0.05, "arithmetic": "exact"},
    ),
    _paper("alpha-first", "as paper-exact, alpha moves first", order="alpha-first"),
    _paper("beta-first", "as paper-exact, beta moves first", order="beta-first"),
    _paper("exponential", "as paper-exact, exponential", policy="exponential"),
    _paper("logarithmic", "as paper-exact, logarithmic", policy="logarithmic"),
    _paper("every-step", "as paper-exact, moves at every step", updates=None),
    _paper("rarely", "as paper-exact, moves 5 times in all", updates=10),
    _paper("start-.9", "from (.9, .1) to (.3, .7), exact", start=(0.9, 0.1)),
    _paper("start-.95", "from (.95, .05) to (.3, .7), exact", start=(0.95, 0.05)),
    _paper("start-.99", "from (.99, .01) to (.3, .7), exact", start=(0.99, 0.01)),
)

ARMS: Mapping[str, Arm] = {arm.name: arm for arm in _ARMS}
