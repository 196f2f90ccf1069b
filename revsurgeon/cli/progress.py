"""How far a long command is: a bar with the time left on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from revsurgeon.cli.output import Output, console

if TYPE_CHECKING:
    from rich.progress import Progress

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_bar(out: Output, unit: str = "points") -> Iterator[Callable[[int, int], None]]:
    """Give a function to be called with what is done, and of how many; on standard error, none with --quiet.

    The bar appears with the first call, so that what is written before does not run into it.
    """
    if out.quiet:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _Lines(unit)
        return
    bars: list[Progress] = []

    def advance(done: int, total: int) -> None:
        if not bars:
            bars.append(_bar(unit))
            bars[0].start()
            bars[0].add_task("", completed=done, total=total)
        bars[0].update(bars[0].task_ids[0], completed=done, refresh=True)

    try:
        yield advance
    finally:
        for bar in bars:
            bar.stop()


def _bar(unit: str) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn(), TextColumn("left"))
    # Not its own standard output and error: the command's Output has taken care of both.
    return Progress(
        *columns, console=console(sys.stderr), transient=True, redirect_stdout=False, redirect_stderr=False
    )


class _Lines:
    """A line every few seconds, with an estimate by what was done since the first of these calls."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.calls = 0
        self.began = 0.0
        self.before = 0
        self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.calls += 1
        if self.calls == 2:  # not from the very beginning: the first point takes longer than the others
            self.began, self.before = now, done
        if done <= self.before or done == total or now - self.last < _SECONDS_BETWEEN_LINES:
            return
        self.last = now
        left = (now - self.began) / (done - self.before) * (total - done)
        print(f"{done} of {total} {self.unit}, about {_duration(left)} left", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> [_duration(s) for s in (0.2, 89, 400, 8000)]
    ['1 s', '89 s', '7 min', '2.2 h']
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
