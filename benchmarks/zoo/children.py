"""One process a network, with limits of time and memory: whatever happens there is one row.

The processes are forked from one that has the libraries imported, so that a small network takes seconds.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.zoo.catalogue import Entry

_PRELOADED = [
    *("torch", "torch._dynamo", "timm", "torchvision", "transformers", "benchmarks.zoo.examine"),
    *(
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.integrations.moe",
    ),
]
_POLL = 0.05


@dataclass
class _Child:
    entry: Entry
    process: Any
    connection: Any
    start: float


def rows(
    entries: Iterable[Entry],
    *,
    jobs: int,
    limit: float,
    memory: int,
    target: Callable[[Any, Entry, int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Examine networks, a few at a time; rows come as they are done.

    Args:
        entries: the networks.
        jobs: how many at a time.
        limit: seconds for one.
        memory: bytes of address space for one.
        target: what a child runs; `in_child`, or a stand-in of it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    waiting, running = list(entries), list[_Child]()
    while waiting or running:
        while waiting and len(running) < jobs:
            entry = waiting.pop(0)
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=target or in_child, args=(there, entry, memory), daemon=True)
            process.start()
            there.close()
            running.append(_Child(entry, process, here, time.monotonic()))
        for child in list(running):
            row = _ended(child, limit)
            if row is not None:
                running.remove(child)
                yield row
        time.sleep(_POLL)


def _ended(child: _Child, limit: float) -> dict[str, Any] | None:
    """The row of a child that is through; None while it runs."""
    row: dict[str, Any] = {
        "key": child.entry.key,
        "library": child.entry.library,
        "family": child.entry.family,
        "status": "failed",
    }
    seconds = round(time.monotonic() - child.start, 1)
    if child.connection.poll():
        try:
            row = child.connection.recv()
        except EOFError:
            child.process.join()
            row |= {"detail": f"its process ended with {child.process.exitcode}", "seconds": seconds}
        child.process.join()
        return row
    if seconds > limit:
        child.process.kill()
        child.process.join()
        return {**row, "status": "not tried", "detail": f"stopped after {limit:.0f} s", "seconds": seconds}
    return None


def in_child(connection: Any, entry: Entry, memory: int) -> None:
    """Examine one network and send its row."""
    import logging
    import warnings

    import torch

    from benchmarks.zoo.examine import examine

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    connection.send(examine(entry))
    connection.close()
