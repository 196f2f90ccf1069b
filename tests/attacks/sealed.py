"""Runs an attack in a copy of this process that may not write, execute, connect or take much memory."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revsurgeon.cli.app import run
from revsurgeon.errors import RevsurgeonError

SECONDS = 60  # of the processor, on a machine that does other things too; most take a hundredth of one
MEMORY = 2 << 30  # bytes that may be asked for beyond what this process has

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EXECUTES = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("subprocess.Popen", "ctypes.dlopen", "pickle.find_class"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo"),
)
_CHANGES = (
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
)


@dataclass(frozen=True)
class Outcome:
    """How an attack ended.

    Attributes:
        error: the class of the exception, or "" where nothing was raised, or "signal N".
        code: the exit code of a RevsurgeonError; else None.
        text: the message.
        forbidden: what was done that no reading of a file needs, as the interpreter's audit events tell it.
    """

    error: str
    code: int | None
    text: str
    forbidden: list[str]


def sealed(*bodies: Callable[[], Any], may_write_below: Path | None = None) -> list[Outcome]:
    """Run some things one after the other in a copy of this process, and say how each ended.

    Args:
        bodies: what to run.
        may_write_below: a directory in which they may write; every other place is forbidden.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            outcomes = _inside(bodies, may_write_below)
            os.write(writer, json.dumps(outcomes).encode("ascii"))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        told = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not told:
        return [Outcome(f"signal {-status}", None, "", [])] * len(bodies)
    return [Outcome(*outcome) for outcome in json.loads(told)]


def forbid(may_write_below: Path | None) -> list[str]:
    """From now on, note what this process does that no reading of a file needs; the list that is filled.

    There is no way to take an audit hook off again.
    """
    forbidden: list[str] = []
    home = None if may_write_below is None else os.fspath(may_write_below.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES:
                told = os.fspath(path) if isinstance(path, str | os.PathLike) else str(path)
                inside = home is not None and os.path.realpath(told).startswith(home)
                nameless = os.path.isdir(told)  # O_TMPFILE: a file that no directory will ever show
                if not (inside or nameless or told == os.devnull):
                    forbidden.append(f"open {told!r} for writing")
        elif event in _EXECUTES and arguments == (None,):
            pass  # ctypes on this process itself
        elif event in _EXECUTES or (home is None and event in _CHANGES):
            forbidden.append(f"{event} {arguments!r}"[:300])

    sys.addaudithook(hook)
    return forbidden


def _inside(bodies: Iterable[Callable[[], Any]], may_write_below: Path | None) -> list[list[Any]]:
    sys.dont_write_bytecode = True
    gc.freeze()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(2 * SECONDS)
    forbidden = forbid(may_write_below)
    outcomes: list[list[Any]] = []
    for body in bodies:
        forbidden.clear()
        ended: list[Any] = ["", None, ""]
        try:
            body()
        except RevsurgeonError as error:
            ended = [type(error).__name__, error.exit_code, str(error)[:3000]]
        except BaseException as error:  # noqa: BLE001, whatever comes out is what is looked at
            ended = [type(error).__name__, None, traceback.format_exc(limit=-6)[-3000:]]
        outcomes.append([*ended, forbidden[:10]])
    return outcomes


def assert_refused(*bodies: Callable[[], Any], codes: tuple[int, ...] = (2,)) -> list[str]:
    """Run attacks; assert that each ends in words, by one of these exit codes, and did nothing; the words."""
    outcomes = sealed(*bodies)
    for outcome in outcomes:
        assert not outcome.forbidden, outcome.forbidden
        assert outcome.code in codes, f"{outcome.error}: {outcome.text}"
        assert "Traceback" not in outcome.text
    return [outcome.text for outcome in outcomes]


def command(*arguments: str) -> Callable[[], None]:
    """A command line as something to run: it raises what was printed, with the exit code."""

    def body() -> None:
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            code = run(arguments)
        error = RevsurgeonError(printed.getvalue())
        error.exit_code = code
        raise error

    return body
