"""What is verified: a network, on a device, with inputs, and where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from revsurgeon.checks import thresholds
from revsurgeon.checks.shared import shared_uses
from revsurgeon.recipes import Checks
from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.coefficients import get_coefficients, some_chains
from revsurgeon.reversible.schedule import CoefficientSchedule
from revsurgeon.rewiring.measure import Arguments, at_coefficients
from revsurgeon.sources.tensors import main_dtype

if TYPE_CHECKING:
    from revsurgeon.artifact import Manifest

BATCH_SIZES = (2, 1)

SMALL_BATCH = BATCH_SIZES[1]
"""For what is run in evaluation mode and in float64, which is slow."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Options:
    """How to verify.

    Attributes:
        offline: do not look for the source.
        rtol: relative error to allow in what is recovered and in gradients, instead of the derived one.
        seeds: how many random inputs.
        skip: checks to leave out.
        allow_python, trust_remote_code, allow_pickle: what the source may do, as for `load` and `convert`.
        token, cache_dir: for the Hub.
    """

    offline: bool = False
    rtol: float | None = None
    seeds: int = 2
    skip: frozenset[str] = frozenset()
    allow_python: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False
    token: str | bool | None = None
    cache_dir: str | Path | None = None

    def completed(self, policy: Checks | None, *, rtol: float | None, seeds: int | None) -> Options:
        """The same with what a recipe says; what the caller asks for comes first."""
        policy = policy or Checks()
        return replace(
            self,
            rtol=policy.rtol if rtol is None else rtol,
            seeds=seeds or policy.seeds or self.seeds,
            skip=frozenset(policy.skip),
        )


@dataclass
class Subject:
    """What is verified.

    Attributes:
        name: for people.
        make_network: gives the rewired network, on its device; called once.
        make_original: a context in which there is the unrewired network with the same weights.
        draw: example arguments, by batch size and seed.
        path: of the artifact; None for a network in memory.
        manifest: of the artifact; None for a network in memory, or where it cannot be read.
        unreadable: why the artifact cannot be read.
        quick: measure only what a conversion has time for.
        by_block: never hold all weights at once.
    """

    name: str
    make_network: Callable[[], nn.Module]
    make_original: Callable[[nn.Module], AbstractContextManager[nn.Module]]
    draw: Callable[[int, int], Arguments]
    options: Options = field(default_factory=Options)
    path: Path | None = None
    manifest: Manifest | None = None
    unreadable: str | None = None
    quick: bool = False
    by_block: bool = False

    @cached_property
    def network(self) -> nn.Module:
        """The rewired network."""
        return self.make_network()

    def original(self) -> AbstractContextManager[nn.Module]:
        """The unrewired network, inside a context."""
        return self.make_original(self.network)

    @property
    def chains(self) -> list[Chain]:
        """The chains of the network."""
        return some_chains(self.network)

    @property
    def exact(self) -> bool:
        """Whether its arithmetic is exact."""
        return all(chain.arithmetic == "exact" for chain in self.chains)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The floating type that most of its weights are in."""
        found = main_dtype(dict(self.network.named_parameters()))
        return torch.float32 if found is None else getattr(torch, found)

    def gradient_tolerance(self, autocast: torch.dtype | None = None) -> float:
        """The relative error that gradients may have; under autocast, sums may be in its type."""
        tolerance = self._tolerance(thresholds.float_gradients(self.dtype))
        if self.options.rtol is not None:
            return tolerance
        return max(tolerance, thresholds.reordered(self._shared_uses, autocast or self.dtype))

    @cached_property
    def _shared_uses(self) -> int:
        return shared_uses(self.network, self.draw(BATCH_SIZES[0], 0))

    @property
    def recovery_tolerance(self) -> float:
        """The relative error that a recovered input may have."""
        return self._tolerance(thresholds.RECOVERED_LIMIT)

    def _tolerance(self, in_float: float) -> float:
        if self.options.rtol is not None:
            return self.options.rtol
        return thresholds.EXACT if self.exact else in_float

    def points(self) -> dict[str, Point]:
        """The coefficients to look at: the start, and unless `quick` the middle, the end, the present ones.

        Points that are the same come once.
        """
        points = coefficient_points(self.network)
        if self.quick:
            points = {"start": points["start"]}
        found: dict[Point, str] = {}
        for name, point in points.items():
            if point[1] > 0:
                found.setdefault(point, name)
        return {name: point for point, name in found.items()}

    def batches(self, sizes: Sequence[int] = BATCH_SIZES) -> Iterator[tuple[int, int, Arguments]]:
        """Seeds, batch sizes and arguments: every size with the first seed, and the first size with all."""
        for seed in range(1 if self.quick else self.options.seeds):
            for size in sizes if seed == 0 else sizes[:1]:
                yield seed, size, self.draw(size, seed)


def coefficient_points(network: nn.Module) -> dict[str, Point]:
    """Start, middle and end of a network's schedule, and its present coefficients."""
    now = get_coefficients(network)
    plan: Mapping[str, Any] = some_chains(network)[0].plan or {"start": now}
    start, end = tuple(plan["start"]), tuple(plan.get("end") or plan["start"])
    states = [chain.state for chain in some_chains(network)]
    keys = ("policy", "order")
    with at_coefficients(network, *now):
        schedule = CoefficientSchedule(
            network, 1000, start=start, end=end, **{k: plan[k] for k in keys if k in plan}
        )
        middle = schedule.coefficients_at(500)
    for chain, state in zip(some_chains(network), states, strict=True):
        chain.state = state
    return {"start": start, "middle": middle, "end": end, "now": now}


def words(name: str, point: Point) -> str:
    """A point as it is written in a report."""
    return f"{name} ({point[0]:.4g}, {point[1]:.4g})"


def can_autocast(subject: Subject) -> bool:
    """Whether the network is one that is trained under bfloat16 autocast."""
    return subject.dtype == torch.float32 and subject.device.type in ("cpu", "cuda")
