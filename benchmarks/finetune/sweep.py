"""The runs of a sweep, one after the other or a few at a time, each on one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from benchmarks.finetune.arms import ARMS
from benchmarks.finetune.results import Key
from benchmarks.finetune.tasks import TASKS


def rows(task: str, wanted: Sequence[Key], jobs: int) -> Iterator[dict[str, Any]]:
    """Run what is wanted; rows come as they are done.

    Args:
        task: its name.
        wanted: arms and seeds, in the order in which they are begun.
        jobs: how many at a time.
    """
    if jobs == 1 or not wanted:
        yield from (one_run(task, arm, seed) for arm, seed in wanted)
        return
    _one_thread()
    _weights(task)  # pretrained here, before several processes do
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.finetune.run", f"benchmarks.finetune.{task}_task"])
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from (f.result() for f in as_completed([pool.submit(one_run, task, *key) for key in wanted]))


def one_run(task: str, arm: str, seed: int) -> dict[str, Any]:
    """One run, with the pretrained weights of the cache."""
    from benchmarks.finetune.run import run

    _one_thread()
    return run(TASKS[task](None), ARMS[arm], seed, _weights(task))


def _weights(task: str) -> dict[str, Any]:
    from benchmarks.finetune.pretrained import pretrained_weights

    return pretrained_weights(TASKS[task](None))


def _one_thread() -> None:
    """Have torch compute on one thread: the networks are too small for more."""
    import torch

    torch.set_num_threads(1)
