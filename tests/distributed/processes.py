"""Two processes that stay for a whole test session: they are handed functions, and return what these return.

Importing torch takes seconds, so one pair serves all tests. A pair in which anything went wrong is ended, and
the next call starts another: neither a failure nor a process that waits for the other holds up the session.
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 200.0
"""Longest wait for an answer. The first one takes some ten seconds, for torch is imported for it."""


SLOW_IMPORTS = [
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict",
    "torch._dynamo",
    "pytest",
]


class TwoProcesses:
    """A process group (gloo) of two; call it with a function of a test module and its arguments.

    Args:
        folder: an empty directory, where the two find each other (so that no port has to be free).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started = 0
        self._ranks: list[tuple[BaseProcess, Connection]] = []

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Run ``function(rank, *args, **kwargs)`` in both; what they returned, by rank.

        Raises:
            AssertionError: one of them raised (with its traceback), died or did not answer.
        """
        if not self._ranks:
            self._start()
        # Pickled here: multiprocessing's own way shares a tensor's memory with a process that may be gone.
        message = pickle.dumps((function, args, kwargs))
        try:
            for _, connection in self._ranks:
                connection.send_bytes(message)
            answers = self._answers()
        except BaseException:
            self.close()
            raise
        wrong = [f"rank {rank} {what}" for rank, (failed, what) in enumerate(answers) if failed]
        if wrong:
            self.close()
            raise AssertionError("\n".join(wrong))
        return [value for _, value in answers]

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(SLOW_IMPORTS)  # once, and not in each process
        self._started += 1
        meeting = str(self.folder / f"meeting-{self._started}")
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, meeting, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def _answers(self) -> list[tuple[bool, Any]]:
        """By rank: whether it failed, and how, or else what it returned."""
        answers: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + SECONDS
        while len(answers) < 2:
            waiting = {
                connection: rank for rank, (_, connection) in enumerate(self._ranks) if rank not in answers
            }
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                answers |= {rank: (True, "did not answer in time") for rank in waiting.values()}
            for connection in ready:
                assert isinstance(connection, Connection)
                try:
                    answer = pickle.loads(connection.recv_bytes())
                except EOFError:
                    answer = True, "died"
                answers[waiting[connection]] = answer
                if answer[0]:  # the other one is waiting for it, or is about to say what went wrong first
                    deadline = min(deadline, time.monotonic() + 5)
        return [answers[rank] for rank in range(2)]

    def close(self) -> None:
        """End both; they have nothing to lose."""
        for process, connection in self._ranks:
            process.kill()
            process.join()
            connection.close()
        self._ranks = []


def _serve(rank: int, meeting: str, connection: Connection) -> None:
    """What each of the two does until it is killed."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    while True:
        function, args, kwargs = pickle.loads(connection.recv_bytes())
        try:
            answer = False, function(rank, *args, **kwargs)
        except BaseException:
            connection.send_bytes(pickle.dumps((True, f"raised:\n{traceback.format_exc()}")))
            raise
        connection.send_bytes(pickle.dumps(answer))
