"""`revsurgeon.estimate_memory`: from a source, an artifact or a network to a plan of its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from revsurgeon.anatomy.probe import ExampleInputs
from revsurgeon.errors import UsageError
from revsurgeon.inference_mode import outside_inference_mode
from revsurgeon.memory.adapters import add_adapters
from revsurgeon.memory.advice import advice
from revsurgeon.memory.fit import find_largest
from revsurgeon.memory.optimizers import check_optimizer
from revsurgeon.memory.plan import Fit, MemoryPlan, Row
from revsurgeon.memory.simulation import QUANTUM, Prediction, Sharding, Simulator
from revsurgeon.memory.sizes import Sizes, parse_bytes, present
from revsurgeon.memory.step import StepOptions
from revsurgeon.memory.strategies import STRATEGIES, Point, Strategy, blocks_of, chosen
from revsurgeon.memory.subject import Subject, subject_of
from revsurgeon.recipes import Recipe
from revsurgeon.reversible.coefficients import chains, get_coefficients
from revsurgeon.rewiring.measure import Arguments
from revsurgeon.rewiring.start import UNMEASURED

NOTES = (
    "Counted is what torch's operators make. Not counted: what a kernel takes inside one operator, the "
    "device context (on CUDA several hundred MB), fragmentation, a data loader's batches, a task's own head "
    "and loss.",
)


@outside_inference_mode
def estimate_memory(
    source_or_model: str | Path | nn.Module,
    *,
    example_inputs: ExampleInputs | None = None,
    inputs: Sequence[str] | None = None,
    batch: int | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    strategies: Sequence[str] | None = None,
    optimizer: str = "adamw",
    amp: str = "none",
    accumulate: int = 1,
    zero: int = 0,
    world_size: int = 1,
    lora_rank: int | None = None,
    device: str = "cuda",
    fit: str | int | None = None,
    vary: str = "batch",
    recipe: str | Path | Recipe | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    allow_python: bool = False,
    tell: Callable[[str], None] | None = None,
) -> MemoryPlan:
    """Predict the memory of a training step, for every way to train, without weights and without a GPU.

    Forward, backward and the optimizer's step run on tensors that have shapes and no memory. Nothing of the
    real sizes is allocated, and no weights are downloaded.

    Args:
        source_or_model: an artifact, a source as `convert` takes it, or a network (which is left as it is).
        example_inputs: of a network that is given.
        inputs: ``NAME=SHAPE[:DTYPE]`` for other shapes.
        batch, frames, image_size: other sizes of the inputs. Where the network does not take them, one that
            is built for them is planned, if its library can.
        strategies: names of ways to train; None takes all.
        optimizer: "adamw", "sgd" (with momentum) or "adam8bit".
        amp: autocast: "bf16", "fp16" or "none".
        accumulate: forwards and backwards of a batch before the optimizer's step.
        zero: 1 shares out optimizer states between processes, 2 gradients too, 3 parameters too; 0 nothing.
        world_size: number of these processes.
        lora_rank: also plan with everything frozen but low-rank adapters on the linear layers of the blocks.
        device: type of device that is planned for, "cuda" or "cpu".
        fit: memory of the device, as "24GiB": search for the largest size that fits.
        vary: what is enlarged: "batch", "frames" or "image-size".
        recipe: of a source: what is rewired, and the coefficients that count.
        revision, allow_pickle, trust_remote_code, allow_python: as in `convert` and `load`.
        tell: is told what happens next, in words.

    Returns:
        The plan, with ``.rows``, ``.fits``, ``.recommendation``, ``.to_dict()`` and ``.plot(path)``.

    Raises:
        UsageError: an argument that makes no sense, or sizes that the network does not take.
        UnsupportedModelError: nothing in it can be rewired, or it cannot be run without values.

    Example:
        >>> import revsurgeon
        >>> plan = revsurgeon.estimate_memory("demo", batch=64)
        >>> plan.row("exact").kept < plan.row("checkpoint").kept < plan.row("stored").kept
        True
    """
    say = tell or (lambda text: None)
    limit = None if fit is None else parse_bytes(fit)
    sizes = Sizes(batch, frames, image_size)
    ways = chosen(strategies)
    check_optimizer(optimizer)
    if device not in QUANTUM:
        raise UsageError(f"device {device!r} is not known.", hint="Known: " + ", ".join(QUANTUM))
    if lora_rank is not None and lora_rank < 1:
        raise UsageError(f"lora rank {lora_rank}: it has to be a number from 1 up.")
    options, sharding = StepOptions(amp, accumulate), Sharding(zero, world_size)
    say("Reading the architecture")
    subject = subject_of(
        source_or_model,
        example_inputs=example_inputs,
        inputs=inputs,
        recipe=recipe,
        revision=revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        allow_python=allow_python,
    )
    if limit is not None:
        present(subject.spec, vary)  # a network without frames is refused before anything is simulated
    planner = Planner(subject, optimizer, device, options, sharding)
    stored = STRATEGIES["stored"]
    rows: list[Row] = []
    fits: list[Fit] = []
    for rank in (None, lora_rank) if lora_rank else (None,):
        base = planner.predict(stored, rank, sizes)
        for way in ways:
            say(f"Simulating a step: {way.title}" + (f", LoRA {rank}" if rank else ""))
            found = planner.predict(way, rank, sizes)
            rows.append(_row(way, rank, found, planner.floor(rank, sizes), base.seconds, device))
    if limit is not None:
        for row in rows:
            say(f"Searching: {row.title}" + (f", LoRA {row.lora_rank}" if row.lora_rank else ""))
            fits.append(planner.fit(STRATEGIES[row.strategy], row.lora_rank, sizes, vary, limit))
    point, blocks = planner.point(sizes), planner.blocks(sizes)
    settings = {
        "batch": sizes.batch or present(subject.spec, "batch"),
        "frames": frames,
        "image_size": image_size,
        "amp": amp,
        "optimizer": optimizer,
        "accumulate": accumulate,
        "lora_rank": lora_rank,
        "zero": zero,
        "world_size": world_size,
    }
    return MemoryPlan(
        name=subject.name,
        device=device,
        settings=settings,
        inputs=subject.shapes(sizes),
        point=(point.alpha, point.beta),
        blocks=tuple(blocks),
        floor=planner.floor(None, sizes),
        rows=tuple(rows),
        limit=limit,
        vary=vary if limit is not None else None,
        fits=tuple(fits),
        recommendation=advice(rows, fits, limit, vary, blocks),
        notes=NOTES,
    )


@dataclass
class Planner:
    """Predictions for a subject, each made once.

    Attributes:
        subject: what is planned for.
        optimizer, device, options, sharding: see `Simulator`.
    """

    subject: Subject
    optimizer: str
    device: str
    options: StepOptions
    sharding: Sharding
    _made: dict[Any, tuple[Simulator, Arguments]] = field(default_factory=dict)
    _found: dict[Any, Prediction] = field(default_factory=dict)
    _floors: dict[Any, int] = field(default_factory=dict)

    def predict(self, way: Strategy, rank: int | None, sizes: Sizes) -> Prediction:
        """What a step takes."""
        key = (way.name, rank, sizes)
        if key not in self._found:
            simulator, arguments = self._at(rank, sizes)
            self._found[key] = simulator.predict(way, arguments)
        return self._found[key]

    def floor(self, rank: int | None, sizes: Sizes) -> int:
        """See `MemoryPlan.floor`."""
        key = (rank, sizes)
        if key not in self._floors:
            simulator, arguments = self._at(rank, sizes)
            self._floors[key] = simulator.floor(arguments)
        return self._floors[key]

    def point(self, sizes: Sizes) -> Point:
        """The coefficients that count."""
        return self._at(None, sizes)[0].point

    def blocks(self, sizes: Sizes) -> list[str]:
        """Paths of the blocks that are checkpointed."""
        return blocks_of(self._at(None, sizes)[0].network)

    def fit(self, way: Strategy, rank: int | None, sizes: Sizes, vary: str, limit: int) -> Fit:
        """The largest size that fits, with the one above it, both simulated."""
        start = getattr(sizes, vary.replace("-", "_")) or present(self.subject.spec, vary)

        def peak(value: int) -> int:
            return self.predict(way, rank, sizes.at(vary, value)).peak.total

        step = self._step(rank, sizes, vary, start)
        found = find_largest(peak, limit, start, step)
        at = sizes.at(vary, found.value or found.smallest)
        own, stored = self.predict(way, rank, at), self.predict(STRATEGIES["stored"], rank, at)
        return Fit(
            way.name,
            way.title,
            rank,
            found.value,
            own.peak.total,
            found.next,
            None if found.next is None else peak(found.next),
            own.seconds[self.device] / stored.seconds[self.device],
        )

    def _step(self, rank: int | None, sizes: Sizes, vary: str, start: int) -> int:
        """By how much a size can grow: patches and windows want multiples."""
        if vary == "batch":
            return 1
        for step in (2, 4, 8) if vary == "frames" else (16, 14, 32):
            try:
                self._at(rank, sizes.at(vary, start + step))
                return step
            except UsageError:
                continue
        raise UsageError(f"{self.subject.name} takes no other {vary.replace('-', ' ')} than {start}.")

    def _at(self, rank: int | None, sizes: Sizes) -> tuple[Simulator, Arguments]:
        """A simulator for these sizes; one network serves all batches."""
        key = (rank, sizes.frames, sizes.image_size, sizes.depth)
        if key not in self._made:
            if len(self._made) > 4:  # of a search over sizes, the first ones are not needed again
                del self._made[list(self._made)[2]]
            network, _ = self.subject.at(sizes)
            point = prepared(network, rank)
            simulator = Simulator(network, self.optimizer, self.device, self.options, self.sharding, point)
            self._made[key] = simulator, ((), {})
        return self._made[key][0], self.subject.arguments(sizes)


def prepared(network: nn.Module, rank: int | None) -> Point:
    """Put adapters into a rewired network where they are wanted; the coefficients that count."""
    if rank is not None:
        add_adapters(network, [block for chain in chains(network) for block in chain.blocks], rank)
    alpha, beta = get_coefficients(network)
    return Point(alpha, beta) if beta else Point(*UNMEASURED)


def _row(
    way: Strategy, rank: int | None, found: Prediction, floor: int, stored: dict[str, float], device: str
) -> Row:
    parts = found.peak.parts
    return Row(
        way.name,
        way.title,
        rank,
        found.peak.total,
        dict(parts),
        found.peak.phase,
        found.peak.module,
        found.kept,
        round(found.working / floor, 2),
        round(found.seconds[device] / stored[device], 3),
    )
