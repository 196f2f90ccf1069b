"""Ctrl-C at any time: one line, exit code 130, no traceback."""

from __future__ import annotations

import json
import signal
import time

import pytest

SLOW_SOURCE = """
import pathlib, time

def build():
    print("a factory that prints")
    pathlib.Path("started").touch()
    time.sleep(60)
"""


def interrupt_when_started(start, tmp_path, *arguments: str):
    (tmp_path / "slow_source.py").write_text(SLOW_SOURCE, encoding="utf-8")
    process = start(*arguments)
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_an_interrupted_command_says_so_in_one_line(start, tmp_path, command):
    code, out, err = interrupt_when_started(start, tmp_path, command, "python:slow_source:build", "--quiet")
    assert code == 130
    assert out == ""
    assert err.splitlines()[-1] == "Interrupted: stopped by Ctrl-C."
    assert "Traceback" not in err
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_an_interrupted_command_is_a_document_with_json(start, tmp_path):
    code, out, _ = interrupt_when_started(start, tmp_path, "inspect", "python:slow_source:build", "--json")
    assert code == json.loads(out)["exit_code"] == 130
