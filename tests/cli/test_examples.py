"""The examples that the help shows are run as they stand, one after the other, in one empty directory."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

COMMANDS = [
    pytest.param((), marks=pytest.mark.slow),
    pytest.param(("convert",), marks=pytest.mark.slow),
    pytest.param(("inspect",), marks=pytest.mark.slow),
    pytest.param(("verify",), marks=pytest.mark.slow),
    pytest.param(("errmap",), marks=pytest.mark.slow),
    pytest.param(("bench",), marks=pytest.mark.slow),
    pytest.param(("export",), marks=pytest.mark.slow),
    pytest.param(("memory",), marks=pytest.mark.slow),
    pytest.param(("demo",), marks=pytest.mark.slow),
    ("recipes", "list"),
    ("recipes", "show"),
    ("recipes", "validate"),
    ("recipes", "schema"),
]
ON_THE_HUB = "facebook/"  # needs the network; everything else must work without


def examples(revsurgeon, command: tuple[str, ...]) -> list[list[str]]:
    lines = [line.strip() for line in revsurgeon(*command, "--help").out.splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("$ revsurgeon ")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "revsurgeon")
def test_every_example_in_the_help_works(revsurgeon, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = 0
    for arguments in examples(revsurgeon, command):
        if any(argument.startswith(ON_THE_HUB) for argument in arguments):
            continue
        target = None
        if ">" in arguments:
            *arguments, _, target = arguments
        result = revsurgeon(*arguments)
        assert result.code == 0, f"revsurgeon {' '.join(arguments)}\n{result.err}"
        if target is not None:
            Path(target).write_text(result.out, encoding="utf-8")
        ran += 1
    assert ran > 0


@pytest.mark.parametrize("command", [("convert",), ("inspect",)], ids=" ".join)
def test_an_example_that_needs_the_hub_says_so_without_a_network(revsurgeon, start, command, tmp_path):
    wanted = [line for line in examples(revsurgeon, command) if line[1].startswith(ON_THE_HUB)]
    assert len(wanted) == 1
    process = start(*wanted[0], HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    _, shown = process.communicate()
    assert process.returncode == 5
    assert "Traceback" not in shown
    assert os.listdir(tmp_path) in ([], ["empty"])
