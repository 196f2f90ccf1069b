"""Step times, the rows taking turns: every row waits in a process of its own until it is asked for one step.

A machine's speed drifts. So in each round every row of a group runs one step, the stored one among them, and
what counts is the ratio of the two within a round. Groups keep few networks in memory at a time. Worth
something only on a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.peers_child import end, killed_first
from benchmarks.peers_results import Results

READY = "ready"
WARM_UP = 2
"""Steps that are not timed: the first one traces or compiles."""


class Waiting:
    """A row in a child process, ready to run a step when it is told to."""

    def __init__(self, network: str, way: str, batch: int, device: str) -> None:
        command = [
            *(sys.executable, "-m", "benchmarks.peers", "--network", network, "--row", way),
            *("--batch", str(batch), "--device", device, "--serve"),
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def answer(self, limit: float) -> str:
        """Its next line; empty when it has ended.

        Raises:
            TimeoutError: nothing came in `limit` seconds.
        """
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], limit)[0]:
            raise TimeoutError
        return self.process.stdout.readline().strip()

    def step(self, limit: float) -> float:
        """Seconds of one step.

        Raises:
            TimeoutError: it took more than `limit` seconds.
            ValueError: the process has ended.
            BrokenPipeError: it had ended before.
        """
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.answer(limit))


def time_all(
    results: Results,
    networks: Sequence[str],
    ways: Sequence[str],
    *,
    batch: int,
    steps: int,
    together: int,
    limit: float,
) -> None:
    """Fill in the times of all measured rows.

    Args:
        results: with the rows; written after every group.
        networks: keys of subjects.
        ways: keys of ways.
        batch: samples.
        steps: rounds.
        together: rows in memory at a time, the stored one included.
        limit: seconds until a row is given up.
    """
    for network in networks:
        measured = [w for w in ways if (r := results.row(network, w)) and r["status"] == "measured"]
        others = [way for way in _goals_first(measured) if way != "stored"]
        size = max(together - 1, 1)
        for group in (others[at : at + size] for at in range(0, len(others), size)):
            times = time_group(network, ["stored", *group], batch, results.document["device"], steps, limit)
            if "stored" not in times:
                continue
            for way, seconds in times.items():
                row = results.row(network, way)
                if row is not None:
                    results.put({**row, "time": compared(seconds, times["stored"])})
            print(network, *times, "timed", file=sys.stderr, flush=True)


GOALS_FIRST = ("checkpoint", "float-0.1", "exact-0.1")
"""Rows that are compared with each other, and so are timed in one group."""


def _goals_first(ways: Sequence[str]) -> list[str]:
    return sorted(ways, key=lambda way: way not in GOALS_FIRST)


def compared(seconds: Sequence[float], stored: Sequence[float]) -> dict[str, Any]:
    """A row's times beside those of stored activations in the same rounds.

    Returns:
        n, the median in seconds, the ratio of the medians, and the quartiles of the rounds' ratios.
    """
    ratios = sorted(own / other for own, other in zip(seconds, stored, strict=True))
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "n": len(ratios),
        "median_seconds": statistics.median(seconds),
        "ratio": statistics.median(seconds) / statistics.median(stored),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
    }


def time_group(
    network: str, ways: Sequence[str], batch: int, device: str, steps: int, limit: float
) -> dict[str, list[float]]:
    """Seconds of every step of every row, one step of each row in turn; a row that fails is left out."""
    times: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        rows: dict[str, Waiting] = {}
        for way in ways:  # one after the other, so that their first steps do not disturb each other
            row = stack.enter_context(_waiting(network, way, batch, device))
            if _answers(row, limit):
                rows[way], times[way] = row, []
        for _ in range(steps):
            for way in list(rows):
                try:
                    times[way].append(rows[way].step(limit))
                except (TimeoutError, ValueError, BrokenPipeError):
                    print(network, way, "failed while it was timed", file=sys.stderr)
                    del rows[way], times[way]
    return times


@contextlib.contextmanager
def _waiting(network: str, way: str, batch: int, device: str) -> Iterator[Waiting]:
    row = Waiting(network, way, batch, device)
    try:
        yield row
    finally:
        end(row.process)


def _answers(row: Waiting, limit: float) -> bool:
    try:
        return row.answer(limit) == READY
    except TimeoutError:
        return False


def serve(network: str, way: str, *, batch: int, device: str) -> None:
    """What the child does: prepare the row, then one step for every line of standard input."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    killed_first()
    work = _prepared(network, way, batch, device)
    for _ in range(WARM_UP):
        work()
    print(READY, file=channel, flush=True)
    for _ in sys.stdin:
        print(repr(work()), file=channel, flush=True)


def _prepared(network: str, way: str, batch: int, device: str) -> Callable[[], float]:
    """A step of a row that returns its seconds."""
    import torch

    from benchmarks.peers_measure import forget, on_device, run
    from benchmarks.peers_networks import SUBJECTS
    from benchmarks.peers_ways import WAYS

    subject = SUBJECTS[network]
    inputs = on_device(subject.example(batch), device)
    plain = subject.make().to(device)
    parameters = list(plain.parameters())
    candidate = WAYS[way].prepare(subject, plain, inputs, False)

    def work() -> float:
        forget(parameters)
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run(candidate, inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return work
