"""A quick sample of `python -m tests.faults.kills`, and the many kills of it, marked slow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.artifact.processes import exit_code, fork
from tests.faults.kills import COMMANDS, kill_all


@pytest.mark.parametrize(
    ("count", "only"),
    [
        (6, ("save", "push")),  # the others' kills have tests beside those of their results
        pytest.param(300, COMMANDS, marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
    ],
    ids=["a few", "many"],
)
def test_a_killed_command_loses_nothing(tmp_path: Path, count: int, only: tuple[str, ...]) -> None:
    """In a process of its own, because its Hub's client is pointed elsewhere for good."""
    torch.set_num_threads(1)

    def body() -> None:
        os.chdir(tmp_path)
        commands = kill_all(tmp_path, count, seed=0, only=only)
        assert all(command.ends.total() > 0 for command in commands.values())

    assert exit_code(fork(body)) == 0
