"""A quick sample of `python -m tests.faults.kills`, and the many kills of it, marked slow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.artifact.processes import exit_code, fork
from tests.faults.kills import kill_all


@pytest.mark.parametrize("count", [5, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_a_killed_command_loses_nothing(tmp_path: Path, count: int) -> None:
    """In a process of its own, because its Hub's client is pointed elsewhere for good."""
    torch.set_num_threads(1)

    def body() -> None:
        os.chdir(tmp_path)
        commands = kill_all(tmp_path, count, seed=0)
        assert all(command.ends.total() > 0 for command in commands.values())

    assert exit_code(fork(body)) == 0
