"""The error map: every exception becomes what, where, what next, and a documented exit code."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from revsurgeon import errors
from revsurgeon.cli.errors import describe


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.RecipeError("x"), 2),
        (errors.ArtifactError("x"), 2),
        (errors.SourceError("x"), 2),
        (errors.VerificationError("x"), 3),
        (errors.UnsupportedModelError("x"), 4),
        (errors.HubError("x"), 5),
        (errors.ChainBrokenError("x"), 1),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 1),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yaml"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 1),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 5),
        (TimeoutError("timed out"), 5),
        (ModuleNotFoundError("No module named 'sklearn'", name="sklearn"), 1),
        (ZeroDivisionError("division by zero"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_exit_codes_are_the_documented_ones(error, code):
    assert describe(raised(error)).exit_code == code


def test_an_error_of_the_package_keeps_what_where_and_hint():
    failure = describe(errors.SourceError("no such thing.", where="a\nb", hint="Try this."))
    assert failure.text() == "SourceError: no such thing.\n  a\n  b\nTry this."
    assert failure.document() == {
        "error": {"kind": "SourceError", "what": "no such thing.", "where": "a\nb", "hint": "Try this."},
        "exit_code": 2,
    }


def test_an_unexpected_error_names_its_place_and_asks_for_a_report():
    failure = describe(raised(ZeroDivisionError("division by zero")))
    assert failure.where is not None
    assert "test_errors.py:" in failure.where
    assert "--debug" in (failure.hint or "")
    assert "report" in (failure.hint or "")


def test_an_error_of_the_operating_system_names_the_file():
    failure = describe(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yaml"))
    assert failure.where == "a.yaml"


def test_a_missing_module_comes_with_the_command_that_installs_it():
    failure = describe(ModuleNotFoundError("No module named 'sklearn.x'", name="sklearn.x"))
    assert failure.hint == "Install it: pip install sklearn"


def test_an_exhausted_device_is_told_from_a_defect():
    program = (
        "import torch; from revsurgeon.cli.errors import describe; "
        "print(describe(torch.OutOfMemoryError('CUDA out of memory. Tried ...')).kind, "
        "describe(RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: 9 bytes')).kind, "
        "describe(RuntimeError('something else')).kind)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["OutOfMemory", "OutOfMemory", "RuntimeError"]


@pytest.mark.parametrize(
    "arguments",
    [["convert"], ["convert", "demo", "--mode", "dr3"], ["inspect", "--no-such-option"], ["conver", "demo"]],
    ids=" ".join,
)
def test_bad_usage_says_where_the_help_is(revsurgeon, arguments):
    result = revsurgeon(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("UsageError: ")
    assert "--help" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


def test_a_misspelt_command_is_answered_with_the_nearest_one(revsurgeon):
    assert "'convert'" in revsurgeon("conver", "demo").err


def test_bad_usage_is_a_document_with_json(revsurgeon):
    result = revsurgeon("convert", "demo", "--mode", "dr3", "--json")
    document = json.loads(result.out)
    assert document["exit_code"] == result.code == 2
    assert "'dr3'" in document["error"]["what"]


def test_an_error_inside_a_command_is_a_document_with_json(revsurgeon):
    result = revsurgeon("recipes", "show", "dr2-balancd", "--json")
    document = json.loads(result.out)
    assert document["exit_code"] == result.code == 2
    assert document["error"]["kind"] == "RecipeError"
    assert "dr2-balanced" in document["error"]["hint"]


def test_the_traceback_is_shown_with_debug_and_only_then(revsurgeon):
    assert "Traceback" in revsurgeon("recipes", "show", "nope", "--debug").err
    assert "Traceback" not in revsurgeon("recipes", "show", "nope").err
