"""Measure the points of a map, in this process or in several with one torch thread each.

The network goes to other processes in a file, which they map into memory. They do not see Ctrl-C: it is for
the process that they work for, and that one ends them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from revsurgeon.errormap.point import Point
from revsurgeon.errormap.sweep import Sweep
from revsurgeon.errors import RevsurgeonError, UsageError


def measure_points(sweep: Sweep, places: Sequence[tuple[float, float]], jobs: int) -> Generator[Point]:
    """Yield the points as they are done. To be closed, so that no process is left behind.

    Args:
        sweep: what to measure on.
        places: (alpha, beta) of the points.
        jobs: processes; with one the measuring is done in this one, with the threads that torch has.

    Raises:
        UsageError: the network cannot be sent to another process.
        RevsurgeonError: a process died.
    """
    if jobs == 1 or len(places) < 2:
        with _fitting_threads(sweep):
            yield from (sweep.measure(alpha, beta) for alpha, beta in places)
        return
    with tempfile.TemporaryDirectory(prefix="revsurgeon-errmap-") as folder:
        file = Path(folder) / "sweep.pt"
        _write(sweep, file)
        yield from _from_processes(file, places, min(jobs, len(places)))


_SMALL = 2**15
"""Elements of a stream up to which a second thread costs more, in waiting, than it brings."""


@contextlib.contextmanager
def _fitting_threads(sweep: Sweep) -> Iterator[None]:
    """Measure small networks with one thread, others with as many as torch has."""
    import torch

    before = torch.get_num_threads()
    try:
        if max(sweep.elements) <= _SMALL:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def _write(sweep: Sweep, file: Path) -> None:
    import torch

    try:
        torch.save(sweep, file)
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(
            "the network cannot be sent to other processes.",
            where=f"{type(sweep.model).__name__}: {error}",
            hint="Measure in this one: jobs=1, on the command line --jobs 1.",
        ) from None


def _from_processes(file: Path, places: Sequence[tuple[float, float]], count: int) -> Generator[Point]:
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_take, initargs=(str(file),)
    )
    done = False
    try:
        with _unseen_by_children():
            futures: list[Future[Point]] = [executor.submit(_measure, place) for place in places]
        for future in as_completed(futures):
            yield future.result()
        done = True
    except BrokenProcessPool:
        raise RevsurgeonError(
            "a process that measured points died.",
            hint="Where memory is short for so many, take fewer --jobs. With --resume the map goes on.",
        ) from None
    finally:
        executor.shutdown(wait=done, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()


@contextlib.contextmanager
def _unseen_by_children() -> Iterator[None]:
    """Have processes that are started here ignore Ctrl-C from their first moment, imports included."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_sweep: Sweep | None = None  # of a worker, which lives for one map


def _take(file: str) -> None:
    """Begin a worker: map the network."""
    import torch

    global _sweep
    torch.set_num_threads(1)
    _sweep = torch.load(file, weights_only=False, mmap=True)  # our own file, of a moment ago


def _measure(place: tuple[float, float]) -> Point:
    assert _sweep is not None
    return _sweep.measure(*place)
