"""The runs of a sweep, one after the other or a few at a time, each on one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.finetune.arms import ARMS
from benchmarks.finetune.results import Key
from benchmarks.finetune.task import Settings, Task
from benchmarks.finetune.tasks import TASKS


@dataclass(frozen=True)
class Sweep:
    """What is the same for all runs.

    Attributes:
        name: of the task.
        settings: other than the task's own.
        device: "cpu" or "cuda".
        weights: where pretrained weights are kept, if not where they usually are.
    """

    name: str
    settings: Settings | None = None
    device: str = "cpu"
    weights: Path | None = None

    def task(self) -> Task:
        """Made anew."""
        return TASKS[self.name](self.settings)


def rows(sweep: Sweep, wanted: Sequence[Key], jobs: int) -> Iterator[dict[str, Any]]:
    """Run what is wanted; rows come as they are done.

    Args:
        sweep: what all runs have in common.
        wanted: arms and seeds, in the order in which they are begun.
        jobs: how many at a time.
    """
    if jobs == 1 or not wanted:
        yield from (one_run(sweep, arm, seed) for arm, seed in wanted)
        return
    _one_thread()
    _weights(sweep)  # pretrained here, before several processes do
    context = get_context("forkserver")
    module = type(sweep.task()).__module__
    context.set_forkserver_preload(["benchmarks.finetune.run", module])
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from (f.result() for f in as_completed([pool.submit(one_run, sweep, *key) for key in wanted]))


def one_run(sweep: Sweep, arm: str, seed: int) -> dict[str, Any]:
    """One run, with the pretrained weights of the cache."""
    from benchmarks.finetune.run import run

    _one_thread()
    return run(sweep.task(), ARMS[arm], seed, _weights(sweep), sweep.device)


def _weights(sweep: Sweep) -> dict[str, Any]:
    from benchmarks.finetune.pretrained import pretrained_weights

    return pretrained_weights(sweep.task(), sweep.weights, sweep.device)


def _one_thread() -> None:
    """Have torch compute on one thread: the networks are too small for more."""
    import torch

    torch.set_num_threads(1)
