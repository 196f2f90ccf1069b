"""`revsurgeon bench`: every way to train, measured on this machine's device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.errors import RevsurgeonError, UsageError
from revsurgeon.memory.allocator import available
from revsurgeon.memory.estimate import Planner, prepared
from revsurgeon.memory.measure import Measured, measure
from revsurgeon.memory.optimizers import check_optimizer
from revsurgeon.memory.report import BenchReport, BenchRow
from revsurgeon.memory.simulation import Prediction, Sharding
from revsurgeon.memory.sizes import Sizes
from revsurgeon.memory.step import StepOptions
from revsurgeon.memory.strategies import STRATEGIES, Point, Strategy, chosen
from revsurgeon.memory.subject import Subject, subject_of
from revsurgeon.memory.surroundings import surroundings


@dataclass(frozen=True)
class _Plan:
    """What all rows share."""

    subject: Subject
    planner: Planner
    optimizer: str
    options: StepOptions
    device: torch.device
    steps: int
    lora_rank: int | None


def bench(
    source: str | Path,
    *,
    sizes: Sequence[Sizes] = (Sizes(),),
    strategies: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    optimizer: str = "adamw",
    amp: str = "none",
    accumulate: int = 1,
    lora_rank: int | None = None,
    device: str | None = None,
    steps: int = 5,
    recipe: str | Path | None = None,
    revision: str | None = None,
    random_weights: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    allow_python: bool = False,
    command: str = "",
    tell: Callable[[str], None] | None = None,
) -> BenchReport:
    """Measure peak, time and gradient error of every way to train, at some sizes.

    A row whose peak is beyond the device's memory is one that does not fit: on CUDA the allocator says so, on
    a CPU the prediction does, before anything is run.

    Args:
        source: an artifact, or a source as `convert` takes it.
        sizes: to measure at, one after the other.
        strategies: names of ways; None takes all.
        inputs: ``NAME=SHAPE[:DTYPE]`` for other shapes.
        optimizer, amp, accumulate, lora_rank: as in `estimate_memory`.
        device: to measure on; None takes CUDA where there is one.
        steps: timed steps of a row, behind two others.
        recipe, revision, random_weights, allow_pickle, trust_remote_code, allow_python: as in `convert`.
        command: for the record.
        tell: is told what happens next.

    Raises:
        UsageError: an argument that makes no sense.
        RevsurgeonError: another of its kinds, by what went wrong.
    """
    say = tell or (lambda text: None)
    check_optimizer(optimizer)
    if optimizer == "adam8bit":
        raise UsageError(
            "adam8bit is counted by `revsurgeon memory`, but there is no such optimizer here to run.",
            hint="Measure with adamw or sgd.",
        )
    if steps < 1:
        raise UsageError(f"steps = {steps}: at least one has to be timed.")
    on = _device(device)
    ways, options = chosen(strategies), StepOptions(amp, accumulate)
    subject = subject_of(
        source,
        inputs=inputs,
        recipe=recipe,
        revision=revision,
        random_weights=random_weights,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        allow_python=allow_python,
    )
    planner = Planner(subject, optimizer, on.type, options, Sharding())
    plan = _Plan(subject, planner, optimizer, options, on, steps, lora_rank)
    rows: list[BenchRow] = []
    for size in sizes:
        rows += _at(plan, size, ways, say)
    settings = {"optimizer": optimizer, "amp": amp, "accumulate": accumulate, "lora_rank": lora_rank}
    return BenchReport(subject.name, surroundings(on, command), {**settings, "steps": steps}, tuple(rows))


def _at(plan: _Plan, sizes: Sizes, ways: Sequence[Strategy], say: Callable[[str], None]) -> list[BenchRow]:
    say("Loading the network" + _words(sizes))
    network, inputs = plan.subject.real_at(sizes)
    point = prepared(network, plan.lora_rank)
    network = network.to(plan.device)
    arguments = pytree.tree_map_only(torch.Tensor, lambda t: t.to(plan.device), inputs)
    shapes = plan.subject.shapes(sizes)
    batch = next(iter(shapes.values()))[0]
    varied = {
        "batch": batch,
        "frames": sizes.frames,
        "image_size": sizes.image_size,
        "depth": sizes.depth,
        "inputs": {name: list(shape) for name, shape in shapes.items()},
    }
    rows = []
    stored: float | None = None
    # Stored activations first: everything is a ratio to them.
    for way in sorted(ways, key=lambda way: way.name != "stored"):
        say(f"Measuring: {way.title}" + _words(sizes))
        predicted = _predicted(plan, way, sizes)
        found = _measured(plan, network, way, point, arguments, predicted)
        if isinstance(found, Measured) and way.name == "stored":
            stored = found.median
        rows.append(_row(way, plan, varied, batch, found, predicted, stored))
    order = list(STRATEGIES)
    return sorted(rows, key=lambda row: order.index(row.strategy))


def _predicted(plan: _Plan, way: Strategy, sizes: Sizes) -> Prediction | None:
    try:
        return plan.planner.predict(way, plan.lora_rank, sizes)
    except RevsurgeonError:
        return None  # it needs values; measuring is what this command is for


def _measured(
    plan: _Plan, network: nn.Module, way: Strategy, point: Point, arguments: Any, predicted: Prediction | None
) -> Measured | str:
    """What was measured, or why it was not."""
    room = available(plan.device)
    if plan.device.type == "cpu" and predicted is not None and room is not None:
        there = sum(p.untyped_storage().nbytes() for p in network.parameters())
        if predicted.peak.total - there > room:
            return f"needs {predicted.peak.total} bytes, and {room + there} are there"
    options: Any = {"optimizer": plan.optimizer, "options": plan.options, "steps": plan.steps}
    try:
        return measure(network, way, point, arguments, **options)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        return str(error).splitlines()[0]
    finally:
        for parameter in network.parameters():
            parameter.grad = None
        gc.collect()
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()


def _row(
    way: Strategy,
    plan: _Plan,
    sizes: dict[str, Any],
    batch: int,
    found: Measured | str,
    predicted: Prediction | None,
    stored: float | None,
) -> BenchRow:
    expected = None if predicted is None else predicted.peak.total
    kept = None if predicted is None else predicted.kept
    seconds = None if predicted is None else predicted.seconds[plan.device.type]
    if isinstance(found, str):
        return BenchRow(
            way.name, way.title, plan.lora_rank, sizes, "does not fit", found,
            predicted_peak=expected, predicted_kept=kept, predicted_seconds=seconds,
        )  # fmt: skip
    return BenchRow(
        way.name,
        way.title,
        plan.lora_rank,
        sizes,
        "measured",
        None,
        peak=found.peak,
        reserved=found.reserved,
        kept=found.kept,
        states=found.states,
        seconds=found.median,
        all_seconds=found.seconds,
        samples_per_second=batch * plan.options.accumulate / found.median,
        time_ratio=None if stored is None else found.median / stored,
        error=found.error,
        predicted_peak=expected,
        predicted_kept=kept,
        predicted_seconds=seconds,
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not known.", hint="Known: cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device on this machine.", hint="Measure on the CPU: --device cpu")
    return torch.device(name)


def _words(sizes: Sizes) -> str:
    named = {
        "batch": sizes.batch,
        "frames": sizes.frames,
        "image size": sizes.image_size,
        "depth": sizes.depth,
    }
    words = [f"{name} {value}" for name, value in named.items() if value is not None]
    return f" at {', '.join(words)}" if words else ""
