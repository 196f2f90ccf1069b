"""The output sink: what goes to standard output, what to standard error, and what a library may spoil."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer

from revsurgeon.cli.output import Output, columns
from revsurgeon.errors import SourceError


def test_json_is_the_only_thing_on_standard_output(capsys):
    with Output(as_json=True) as out:
        print("a library says hello")
        out.print("words for people")
        out.result({"answer": 42}, "words for people", brief="42")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"answer": 42}
    assert "a library says hello" in captured.err


def test_people_get_the_lines_and_scripts_the_brief_form(capsys):
    with Output() as out:
        out.result({"answer": 42}, "the answer", "is 42", brief="42")
    assert capsys.readouterr().out == "the answer\nis 42\n"
    with Output(quiet=True) as out:
        out.print("more words")
        out.result({"answer": 42}, "the answer", "is 42", brief="42")
    assert capsys.readouterr().out == "42\n"


def test_progress_goes_to_standard_error_one_line_a_step(capsys):
    with Output() as out:
        out.step("reading")
        out.step("writing")
    assert capsys.readouterr() == ("", "reading\nwriting\n")


def test_quiet_has_no_progress(capsys):
    with Output(quiet=True) as out:
        out.step("reading")
    assert capsys.readouterr() == ("", "")


def test_an_error_becomes_the_exit_code_and_lines_on_standard_error(capsys):
    with pytest.raises(SystemExit) as left, Output():
        raise SourceError("there is no such source.", where="here", hint="Look elsewhere.")
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "SourceError: there is no such source.\n  here\nLook elsewhere.\n"


def test_an_error_after_some_library_noise_is_still_one_json_document(capsys):
    def noisy_failure() -> None:
        print("noise")
        raise SourceError("there is no such source.")

    with pytest.raises(SystemExit) as left, Output(as_json=True):
        noisy_failure()
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == left.value.code == 2
    assert document["error"]["what"] == "there is no such source."


def test_an_exit_on_purpose_passes_through_unreported(capsys):
    with pytest.raises(typer.Exit) as left, Output(as_json=True):
        raise typer.Exit(3)
    assert left.value.exit_code == 3
    assert capsys.readouterr() == ("", "")


def test_warnings_of_libraries_are_shown_with_debug_only(capsys):
    with Output():
        warnings.warn("an old function", FutureWarning, stacklevel=1)
    assert capsys.readouterr() == ("", "")
    with Output(debug=True):
        warnings.warn("an old function", FutureWarning, stacklevel=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "an old function" in captured.err


def test_warnings_of_the_package_are_one_line_for_people(capsys):
    inside = str(Path(sys.modules["revsurgeon.errors"].__file__ or ""))
    with Output():
        warnings.warn_explicit("beta is small", UserWarning, inside, 1)
    assert capsys.readouterr() == ("", "Warning: beta is small\n")


def test_standard_output_and_warnings_are_as_before_afterwards():
    stdout, show = sys.stdout, warnings.showwarning
    with Output():
        pass
    assert (sys.stdout, warnings.showwarning) == (stdout, show)


def test_columns_are_aligned_and_not_wrapped_in_a_pipe():
    rows = [("a", "(1, 0)", "word " * 40), ("longer", "(0, 1)", "short")]
    first, second = columns(rows, None).splitlines()
    assert first.index("(1") == second.index("(0")
    assert len(first) > 200


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_columns_keep_to_the_width_of_a_terminal_and_lose_no_word(width):
    rows = [("a-name", "dr2", "several words that explain what this is " * 3), ("b", "re2", "short")]
    text = columns(rows, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.split() == [word for row in rows for text in row for word in text.split()]


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """Run a command line on a pseudo-terminal and return what it shows there."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "revsurgeon.cli", *arguments],
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(follower)
    shown = b""
    while chunk := _read(leader):
        shown += chunk
    process.wait()
    os.close(leader)
    return shown.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # how Linux says that the other end is closed
        return b""


COLOUR = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m")


def test_a_terminal_gets_colours():
    assert COLOUR.search(on_a_terminal("recipes", "show", "re2", NO_COLOR=""))


def test_no_color_is_honoured():
    shown = on_a_terminal("recipes", "show", "re2", NO_COLOR="1")
    assert "re2" in shown
    # Bold and dim are not colours; 30 to 49 and 90 to 107 are.
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3\d|4[0-8]|9\d|10[0-7])(?:;\d+)*m", shown)


def test_a_pipe_gets_no_escape_codes(revsurgeon):
    assert "\x1b" not in revsurgeon("recipes", "show", "re2").out


def test_a_reader_that_goes_away_ends_the_run_quietly(start):
    process = start("recipes", "schema")
    process.stdout.close()  # long before Python has started
    assert process.wait() == 141
    assert process.stderr.read() == ""


def test_signs_that_a_terminal_cannot_show_do_not_end_the_run(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: naïve\ndescription: 深い\nmode: dr2\nstart: {alpha: 0.9, beta: 0.1}\n", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "revsurgeon.cli", "recipes", "show", str(recipe)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert "name: na?ve" in done.stdout
