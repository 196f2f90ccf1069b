"""Move the coefficients during finetuning, as Dr2Net does (Zhao et al., CVPR 2024: dynamic finetuning)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from revsurgeon.errors import RevsurgeonError
from revsurgeon.reversible.coefficients import get_coefficients, set_coefficients, some_chains

_STEEPNESS = 100.0

POLICIES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "exponential": lambda t: (_STEEPNESS**t - 1.0) / (_STEEPNESS - 1.0),
    "logarithmic": lambda t: math.log1p((_STEEPNESS - 1.0) * t) / math.log(_STEEPNESS),
}
"""How far a coefficient has moved (0 to 1) after a share t (0 to 1) of its time. Exponential starts slowly
and ends fast, logarithmic the other way round; the steepest slope is about 100 times the flattest."""

ORDERS = ("simultaneous", "alpha-first", "beta-first")


class CoefficientSchedule:
    """Moves alpha and beta from a start point to an end point; call `step` once an iteration.

    Changing coefficients never compiles anything again.

    Args:
        model: a rewired network.
        total_steps: iterations of the whole training.
        start: (alpha, beta) to begin with; None takes the network's present ones.
        end: (alpha, beta) to end with; None stays at the start.
        policy: "linear", "exponential" or "logarithmic", see `POLICIES`.
        order: "simultaneous"; "alpha-first" moves alpha in the first half of the time and beta in the
            second; "beta-first" the other way round.
        update_every: iterations between two updates (the paper's eta).
        until: when the end is reached: {"steps": n}, {"epochs": n} (the paper's tau) or {"fraction": f} of
            the whole training.
        steps_per_epoch: iterations an epoch, needed for {"epochs": n}.

    Raises:
        RevsurgeonError: an argument out of range.

    Example:
        >>> import torch, timm
        >>> from revsurgeon.rewiring import rewire
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> model = rewire(model, example_inputs=torch.randn(2, 3, 32, 32))
        >>> schedule = CoefficientSchedule(model, total_steps=4, end=(0.3, 0.7))
        >>> for _ in range(4):
        ...     schedule.step()
        >>> get_coefficients(model)
        (0.3, 0.7)
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        start: tuple[float, float] | None = None,
        end: tuple[float, float] | None = None,
        policy: str = "linear",
        order: str = "simultaneous",
        update_every: int = 1,
        until: Mapping[str, float] | None = None,
        steps_per_epoch: int | None = None,
        _state: Mapping[str, Any] | None = None,
    ) -> None:
        _require(total_steps >= 1, f"total_steps = {total_steps}", "It must be at least 1.")
        _require(update_every >= 1, f"update_every = {update_every}", "It must be at least 1.")
        _require(policy in POLICIES, f"policy = {policy!r}", f"Choose one of: {', '.join(POLICIES)}.")
        _require(order in ORDERS, f"order = {order!r}", f"Choose one of: {', '.join(ORDERS)}.")
        self.model = model
        self.start = start if start is not None else get_coefficients(model)
        self.end = end if end is not None else self.start
        self.policy = policy
        self.order = order
        self.update_every = update_every
        self.end_step = _end_step(total_steps, until or {"fraction": 1.0}, steps_per_epoch)
        self.steps_done = 0
        if _state is not None:
            self.load_state_dict(_state)
        else:
            self._apply()

    @classmethod
    def from_manifest(
        cls, model: nn.Module, total_steps: int, *, steps_per_epoch: int | None = None
    ) -> CoefficientSchedule:
        """The schedule of the recipe that the network was rewired with, resumed where it was saved.

        Args:
            model: a network that `revsurgeon.load` or `revsurgeon.rewire` returned.
            total_steps: iterations of the whole training.
            steps_per_epoch: needed when the recipe's end is given in epochs.

        Raises:
            RevsurgeonError: the network carries no recipe.
        """
        chain = some_chains(model)[0]
        if chain.plan is None:
            raise RevsurgeonError(
                f"{type(model).__name__} carries no recipe.",
                hint="Rewire it with revsurgeon.rewire, or give the schedule its start and end.",
            )
        return cls(model, total_steps, steps_per_epoch=steps_per_epoch, **chain.plan, _state=chain.state)

    def step(self) -> None:
        """Count one iteration and set the coefficients for the next one."""
        self.steps_done += 1
        self._apply()

    def coefficients_at(self, step: int) -> tuple[float, float]:
        """(alpha, beta) after a number of iterations."""
        if step >= self.end_step:
            return self.end
        share = step // self.update_every * self.update_every / self.end_step
        first, second = min(1.0, 2.0 * share), max(0.0, 2.0 * share - 1.0)
        shares = {
            "simultaneous": (share, share),
            "alpha-first": (first, second),
            "beta-first": (second, first),
        }
        weights = [POLICIES[self.policy](t) for t in shares[self.order]]
        alpha, beta = (a + (b - a) * w for a, b, w in zip(self.start, self.end, weights, strict=True))
        return alpha, beta

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to resume; plain data."""
        return {
            "steps_done": self.steps_done,
            "end_step": self.end_step,
            "start": list(self.start),
            "end": list(self.end),
            "policy": self.policy,
            "order": self.order,
            "update_every": self.update_every,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`, and set the coefficients that belong to it."""
        self.steps_done = int(state["steps_done"])
        self.end_step = int(state["end_step"])
        self.start = (float(state["start"][0]), float(state["start"][1]))
        self.end = (float(state["end"][0]), float(state["end"][1]))
        self.policy, self.order = str(state["policy"]), str(state["order"])
        self.update_every = int(state["update_every"])
        self._apply()

    def _apply(self) -> None:
        alpha, beta = self.coefficients_at(self.steps_done)
        set_coefficients(self.model, alpha, beta)
        state = self.state_dict()
        for chain in some_chains(self.model):
            chain.state = state  # so that a saved network knows where its schedule stood


def _end_step(total: int, until: Mapping[str, float], steps_per_epoch: int | None) -> int:
    if len(until) != 1:
        raise RevsurgeonError(
            f"until = {dict(until)} is not one end.", hint='Write {"fraction": 1.0}, for example.'
        )
    ((kind, amount),) = until.items()
    _require(amount > 0, f"until {kind} = {amount}", "It must be above 0.")
    if kind == "steps":
        return int(amount)
    if kind == "fraction":
        _require(amount <= 1, f"until fraction = {amount}", "It must be at most 1.")
        return max(1, round(amount * total))
    _require(kind == "epochs", f"until {kind!r}", "Choose one of: steps, epochs, fraction.")
    if steps_per_epoch is None:
        raise RevsurgeonError(
            "the schedule ends after a number of epochs, and how long an epoch is was not said.",
            hint="Pass steps_per_epoch=len(dataloader).",
        )
    return max(1, round(amount * steps_per_epoch))


def _require(condition: bool, what: str, hint: str) -> None:
    if not condition:
        raise RevsurgeonError(f"{what} is out of range.", hint=hint)
