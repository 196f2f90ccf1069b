"""Predict the memory of one training step, by running it on a network without memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from revsurgeon.errors import RevsurgeonError, UnsupportedModelError
from revsurgeon.memory.independence import set_dimensions
from revsurgeon.memory.optimizers import make_optimizer, state_tensors
from revsurgeon.memory.skeleton import constants, fake_inputs, no_memory, skeleton
from revsurgeon.memory.step import StepOptions, training_step
from revsurgeon.memory.strategies import Point, Strategy, training_by
from revsurgeon.memory.tracker import Peak, Tracker, Whereabouts
from revsurgeon.rewiring.measure import Arguments, tensors_of
from revsurgeon.rewiring.unrewired import replaced_forwards, rewired_forwards, stream_of

QUANTUM = {"cuda": 512, "cpu": 1}
"""Bytes that the allocator of a device rounds up to."""


@dataclass(frozen=True)
class Sharding:
    """How states are shared out between processes (ZeRO, Rajbhandari et al., SC 2020).

    Attributes:
        stage: 0 not at all; 1 the optimizer's states; 2 gradients too; 3 parameters too.
        world_size: number of processes.
    """

    stage: int = 0
    world_size: int = 1

    def shares(self) -> dict[str, float]:
        """The part of each category that one process holds."""
        part = 1.0 / self.world_size
        by_stage = {1: ("optimizer",), 2: ("optimizer", "gradients")}
        names = by_stage.get(self.stage, ("optimizer", "gradients", "parameters") if self.stage else ())
        return dict.fromkeys(names, part)


@dataclass(frozen=True)
class Prediction:
    """What one step takes.

    Attributes:
        peak: when most is alive.
        kept: bytes of activations that are alive between forward and backward.
        states: bytes that are always there: parameters, optimizer states, inputs and buffers.
        flops: of the step.
        working: the most activations and temporaries that are alive at one time.
        seconds: that the step would take by a roofline, by type of device; for ratios.
    """

    peak: Peak
    kept: int
    states: int
    working: int
    flops: int
    seconds: dict[str, float]


@dataclass
class Simulator:
    """A rewired network without memory, ready to be stepped at any size and in any way.

    Attributes:
        network: rewired; with weights or on the meta device.
        optimizer: name of the optimizer.
        device: type of device that is planned for, "cuda" or "cpu".
        options: of the step.
        sharding: of the states.
        point: of the coefficients.
    """

    network: nn.Module
    optimizer: str
    device: str
    options: StepOptions
    sharding: Sharding
    point: Point
    _fake: Any = field(default=None, repr=False)
    _copy: nn.Module | None = field(default=None, repr=False)
    _prepared: set[Any] = field(default_factory=set, repr=False)
    _stepper: torch.optim.Optimizer | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        with no_memory() as self._fake:
            self._copy = skeleton(self.network).train()
            trained = [p for p in self._copy.parameters() if p.requires_grad]
            self._stepper = make_optimizer(self.optimizer, trained, self.device)
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            self._stepper.step()
            self._stepper.zero_grad(set_to_none=True)

    def predict(self, strategy: Strategy, arguments: Arguments) -> Prediction:
        """Simulate a step.

        Args:
            strategy: how the network is trained.
            arguments: of its forward, on any device; only their shapes count.

        Raises:
            UnsupportedModelError: the network cannot be run without memory.
        """
        assert self._copy is not None
        with no_memory(self._fake), training_by(self._copy, strategy, self.point):
            given = fake_inputs(arguments)
            try:
                if strategy.reversible:
                    self._prepare(given, strategy)
                return self._tracked(given)
            except RevsurgeonError:
                raise
            except Exception as error:  # arbitrary user code ran
                raise _cannot(self.network, error) from error

    def floor(self, arguments: Arguments) -> int:
        """Bytes below which no reversible chain gets: two streams and two gradients, in float32.

        And, where several chains follow each other, the two streams that each one before has kept.
        """
        assert self._copy is not None
        sizes: dict[str, int] = {}

        def noting(rewired: Any) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                x = stream_of(rewired, args, kwargs)
                sizes.setdefault(rewired.chain.name, x.numel() * max(x.element_size(), 4))
                return rewired.original(*args, **kwargs)

            return run

        noted = {r: noting(r) for r in rewired_forwards(self._copy)}
        with no_memory(self._fake), torch.no_grad(), replaced_forwards(noted):
            self._forward(fake_inputs(arguments))
        kept, floor = 0, 1
        for size in sizes.values():
            floor, kept = max(floor, kept + 4 * size), kept + 2 * size
        return floor

    def _prepare(self, arguments: Arguments, strategy: Strategy) -> None:
        """Have the blocks cut for this kind of call, which makes tensors that a real step does not make."""
        assert self._copy is not None
        kind = strategy.name == "chunked", tuple(t.shape for t in tensors_of(arguments))
        if kind in self._prepared:
            return
        if strategy.name == "chunked":
            set_dimensions(self._copy, lambda: self._forward(arguments))
        else:
            self._forward(arguments)
        self._prepared.add(kind)

    def _forward(self, arguments: Arguments) -> None:
        assert self._copy is not None
        with self.options.autocast("cpu"):
            self._copy(*arguments[0], **arguments[1])

    def _tracked(self, arguments: Arguments) -> Prediction:
        assert self._copy is not None
        assert self._stepper is not None
        network, optimizer = self._copy, self._stepper
        with Whereabouts.of(network) as where:
            tracker = Tracker(shares=self.sharding.shares(), quantum=QUANTUM[self.device], where=where)
            tracker.adopt(network.parameters(), "parameters")
            tracker.adopt(tensors_of([arguments, constants(network)]), "inputs")
            tracker.adopt(state_tensors(optimizer), "optimizer")
            states = sum(tracker.totals().values())
            kept = 0

            def enter(phase: str) -> None:
                nonlocal kept
                if phase == "kept":
                    kept = max(kept, tracker.totals()["activations"])
                else:
                    tracker.phase = phase

            with tracker, _gradients_counted(network, tracker):
                training_step(network, arguments, optimizer, self.options, enter=enter)
            return Prediction(
                tracker.peak, kept, states, tracker.working, tracker.work.flops, dict(tracker.work.seconds)
            )


@contextlib.contextmanager
def _gradients_counted(network: nn.Module, tracker: Tracker) -> Iterator[None]:
    """Have every parameter's gradient counted as one."""

    def note(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            tracker.adopt([parameter.grad], "gradients")

    trained = [p for p in network.parameters() if p.requires_grad]
    handles = [p.register_post_accumulate_grad_hook(note) for p in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cannot(network: nn.Module, error: Exception) -> UnsupportedModelError:
    return UnsupportedModelError(
        "the network cannot be run without memory.",
        where=f"{type(network).__name__}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
        hint="Its size may be one that it does not take (--input), or its code needs the values of tensors. "
        "In that case measure it: revsurgeon bench.",
    )
