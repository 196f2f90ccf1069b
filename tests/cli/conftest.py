"""How the tests of the command line run it: in this process for speed, in another one for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
import torch

import revsurgeon.errors as revsurgeon_errors
from revsurgeon.cli.app import run as run_in_process

# Whichever is tested, a checkout or an installed package, other processes run the same one.
PACKAGE = Path(revsurgeon_errors.__file__).parent


@dataclass(frozen=True)
class Result:
    """What a run left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Run(Protocol):
    """The type of the fixture `revsurgeon`."""

    def __call__(self, *arguments: str) -> Result: ...


@pytest.fixture
def revsurgeon(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process."""
    # run() sets these for the libraries; undo it after the test.
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))
        monkeypatch.delenv(variable)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = run_in_process(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a command line as a process of its own, in an empty directory."""

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "revsurgeon.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        )

    return start


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The networks here are small: threads that wait for each other would take most of the time."""
    torch.set_num_threads(1)
