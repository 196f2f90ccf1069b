"""Killing a conversion leaves what was there before, or the finished artifact, and nothing in between."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import revsurgeon as rs
from tests.artifact.processes import contents

KILLS = {"Looking up": 3, "Loading": 4, "Finding": 3, "Checking": 4, "Writing": 26}
"""How many children are killed after each message of a conversion: 40, most of them while it writes."""


def convert_with_copies(output: Path, force: bool, at_message: Callable[[str], None]) -> None:
    """Convert the demo; where `at_message` forks, the copy goes on with the conversion and ends with it."""
    parent = os.getpid()
    code = 1

    def progress(message: str) -> None:
        if os.getpid() == parent:
            at_message(message)

    try:
        rs.convert("demo", output=output, force=force, arithmetic="exact", progress=progress)
        code = 0
    finally:
        if os.getpid() != parent:  # never back into pytest
            os._exit(code)


def duration_after(message: str, output: Path) -> float:
    """How long the rest of the conversion takes in a copy of this process that is left alone."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        return 0.0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, message
    assert output.is_dir(), message
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize(
    "force",
    [
        pytest.param(False, id="nothing there", marks=pytest.mark.slow),
        pytest.param(True, id="an old artifact there"),
    ],
)
def test_a_kill_at_a_random_moment_leaves_the_old_or_the_finished_artifact(
    tmp_path: Path, force: bool
) -> None:
    output = tmp_path / "out"
    finished = contents(rs.convert("demo", output=tmp_path / "finished" / "out", arithmetic="exact"))
    old = tmp_path / "old" / "out"
    if force:
        old = rs.convert("demo", mode="re2", output=old)
    before = contents(old) if force else None
    assert before != finished
    moments = random.Random(0)
    seen: dict[str, int] = {"before": 0, "finished": 0, "leftovers": 0}
    kills = 0

    def reset() -> None:
        _remove(output)
        if force:
            output.mkdir()
            for name, data in (before or {}).items():
                (output / name).write_bytes(data)

    def kill_copies(message: str) -> None:
        nonlocal kills
        stage = next(stage for stage in KILLS if message.startswith(stage))
        # The time that a copy has left; once for the short last stage, else it is enough to know some of it.
        left = 0.3
        if stage == "Writing":
            left = duration_after(message, output)
            if left == 0.0:
                return
            reset()
        for _ in range(KILLS[stage]):
            child = os.fork()
            if child == 0:
                return
            time.sleep(moments.uniform(0, 1.1 * left))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            if check() == "finished":
                reset()

    def check() -> str:
        for name in [path for path in tmp_path.iterdir() if path.name.startswith(".") and path.is_dir()]:
            seen["leftovers"] += 1
            for refused in (name, *name.glob("*.safetensors")):
                with pytest.raises(rs.ArtifactError, match="did not finish"):
                    rs.load(refused)
        if not output.exists():
            assert before is None
            with pytest.raises(rs.ArtifactError):
                rs.load(output)
            state = "before"
        else:
            there = contents(output)
            assert there in (before, finished)
            assert rs.chains(rs.load(output))
            state = "finished" if there == finished else "before"
        seen[state] += 1
        return state

    reset()
    convert_with_copies(output, force, kill_copies)
    assert kills >= 30
    # The kills met both sides of the moment at which the output appears, and interrupted writing.
    assert seen["before"] > 10
    assert seen["leftovers"] > 0
    # This process was not killed: it has finished, over all that the killed ones had left.
    assert contents(output) == finished
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith(".")]


def _remove(directory: Path) -> None:
    if directory.exists():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
