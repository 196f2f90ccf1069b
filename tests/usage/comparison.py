"""A program's values with reversible and with stored activations."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import CheckpointError

from revsurgeon.errors import RevsurgeonError
from tests.usage.networks import rewired, shape_of
from tests.usage.programs import Step, program
from tests.usage.session import Session, Values

FLOAT_BOUND = 1e-6
"""Error in float64 and float arithmetic: twelve segments at .3 multiply rounding by 2e6."""

CHUNKED_BOUND = 1e-5
"""Error in float32 where pieces are added up: some hundred terms of eps each."""


class WrongError(AssertionError):
    """A program's values differ."""


def compare(name: str, seed: int, arithmetic: str) -> str:
    """Run a random program on a network.

    Returns:
        "agrees"; "refused: ..." with the reason; or "stopped" where torch itself goes no further with stored
        activations.

    Raises:
        WrongError: a value is another one than with stored activations, or an error is not a refusal.
    """
    network, shape = rewired(name, arithmetic), shape_of(name)
    ours = Session(network, shape, stored=False, retain=False)
    plain = Session(network, shape, stored=True, retain=False)
    kept = Session(network, shape, stored=True, retain=True)  # stored activations that are freed give nothing
    steps = program(seed, len(ours.blocks))
    plain_stopped = chunked = False
    for number, step in enumerate(steps):
        step = _possible(step, name, arithmetic)
        place = f"{name}, {arithmetic}, seed {seed}, step {number} of {steps[: number + 1]}"
        try:
            expected = kept.take(step)
        except RuntimeError:
            return "stopped"
        except RevsurgeonError as error:  # whatever the activations do: a block's output was written over
            return f"refused: {error.args[0]}"
        try:
            plain_stopped or plain.take(step)
        except RuntimeError:
            plain_stopped = True
        try:
            found = ours.take(step)
        except RevsurgeonError as error:
            return "stopped" if plain_stopped else f"refused: {error.args[0]}"
        except RuntimeError as error:
            if plain_stopped:
                return "stopped"
            if "modified by an inplace operation" in str(error):  # a chain's output may be its last stream
                return "refused: a chain's output was written over."
            if isinstance(error, CheckpointError):  # its recomputation ran at another beta, with other bits
                return "refused: what a checkpoint computed again was not what it had computed."
            raise WrongError(place) from error
        chunked = chunked or step.arguments.get("pieces", 1) > 1
        bound = FLOAT_BOUND if arithmetic == "float" else CHUNKED_BOUND if chunked else 0.0
        difference = _difference(found, expected, bound)
        if difference is not None:
            raise WrongError(f"{difference}: {place}")
    return "agrees"


def _possible(step: Step, name: str, arithmetic: str) -> Step:
    """Without what makes values differ by rounding alone."""
    arguments = dict(step.arguments)
    if "beta" in arguments and arithmetic == "float":
        arguments["beta"] = max(arguments["beta"], 0.3)
    if "autocast" in arguments and (name == "twice" or arithmetic == "float"):
        arguments["autocast"] = False  # what comes from two calls is added up in bfloat16, in another order
    return Step(step.name, arguments)


def _difference(found: Values, expected: Values, bound: float) -> str | None:
    if len(found) != len(expected):
        return f"{len(found)} values in place of {len(expected)}"
    # Relative to the largest of them: the gradient of a bias before a normalization is rounding alone.
    largest = max((float(value.abs().max()) for value in expected if value is not None), default=0.0)
    for place, (value, other) in enumerate(zip(found, expected, strict=True)):
        if (value is None) != (other is None):
            return f"value {place} is {'missing' if value is None else 'not missing'}"
        if value is None or other is None or torch.equal(value, other):
            continue
        error = float((value.double() - other.double()).abs().max()) / largest
        if not error <= bound:
            return f"value {place} is off by {error:.2g}"
    return None
