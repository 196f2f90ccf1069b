"""Random ways to use autograd, as plain data: what is called, differentiated, frozen or dropped, and when."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step: the name of a method of `tests.usage.session.Session`, and its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


RUNS = ("a", "b")
"""Two forwards may be alive at a time."""


ACTIONS = {"tap": 12, "grad": 4, "random": 2, "scale the gradient": 2, "write": 1}
"""What a hook on a block does, and how often."""


def program(seed: int, blocks: int) -> list[Step]:
    """A random program.

    Args:
        seed: the same one gives the same program.
        blocks: of the network.
    """
    draw = random.Random(seed)
    steps = [_forward(draw, blocks)]
    makers = {_forward: 6, _grad: 6, _backward: 5, _other: 10}
    for _ in range(draw.randint(3, 12)):
        maker = draw.choices(list(makers), list(makers.values()))[0]
        steps.append(maker(draw, blocks))
    return [*steps, Step("read")]


def _chance(draw: random.Random, probability: float) -> bool:
    return draw.random() < probability


def _forward(draw: random.Random, blocks: int) -> Step:
    checkpoint = draw.choices(["no", "yes", "reentrant"], [8, 1, 1])[0]
    hooks = [
        (draw.randrange(blocks), draw.choices(list(ACTIONS), list(ACTIONS.values()))[0], _chance(draw, 0.5))
        for _ in range(draw.randint(0, 4) if checkpoint == "no" else 0)
    ]
    return Step(
        "forward",
        {
            "run": draw.choice(RUNS),
            "seed": draw.randrange(2**20),
            "input_gradient": _chance(draw, 0.6),
            "mode": draw.choices(["grad", "no_grad", "inference"], [12, 1, 1])[0],
            "autocast": _chance(draw, 0.15),
            "offload": _chance(draw, 0.1),
            "checkpoint": checkpoint,
            "hooks": hooks,
        },
    )


def _outputs(draw: random.Random, blocks: int) -> list[str]:
    return draw.sample(["output", *(f"tap {i}" for i in range(blocks))], k=draw.randint(1, 3))


def _grad(draw: random.Random, blocks: int) -> Step:
    kinds = [
        "input",
        "parameters",
        *(f"tap {i}" for i in range(blocks)),
        *(f"block {i}" for i in range(blocks)),
    ]
    return Step(
        "grad",
        {
            "run": draw.choice(RUNS),
            "outputs": _outputs(draw, blocks),
            "by": draw.sample(kinds, k=draw.randint(1, 3)),
            "retain": _chance(draw, 0.6),
        },
    )


def _backward(draw: random.Random, blocks: int) -> Step:
    if _chance(draw, 0.15):
        return Step("backward_of_both", {"retain": _chance(draw, 0.5)})
    return Step(
        "backward",
        {"run": draw.choice(RUNS), "outputs": _outputs(draw, blocks), "retain": _chance(draw, 0.5)},
    )


def _other(draw: random.Random, blocks: int) -> Step:
    block = draw.randrange(blocks)
    return draw.choice(
        [
            Step("read"),
            Step("read"),
            Step("zero_grad"),
            Step("coefficients", {"beta": draw.choice([0.05, 0.1, 0.3, 0.5, 0.9, 1.0])}),
            Step("train", {"mode": _chance(draw, 0.6)}),
            Step("freeze", {"block": block, "frozen": _chance(draw, 0.5)}),
            Step("drop", {"run": draw.choice(RUNS), "what": draw.choice(["run", "output", f"tap {block}"])}),
            Step("change", {"block": block}),
            Step("copy"),
            Step(
                "write", {"run": draw.choice(RUNS), "what": draw.choice(["output", "input", f"tap {block}"])}
            ),
            Step("chunk", {"pieces": draw.choice([1, 2, 3])}),
            Step("anchor", {"every": draw.choice([0, 1, 2, 3])}),
            Step("rate", {"block": block, "of_dropout": draw.choice([0.0, 0.3])}),
        ]
    )
