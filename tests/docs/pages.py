"""The code on a page of the documentation, and how it is run as it stands.

``python`` blocks are run in order in one namespace, ``bash`` blocks line by line, all in one directory. A
paragraph in italics above a block, which readers see too, says where that is not so:

    *Tests run this with `--batch 2` in place of `--batch 64`, `demo` in place of `SOURCE`.*
    *No test runs this: REASON.*
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revsurgeon.cli.app import run as run_command

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"^(?:\*(?:Tests run this with (?P<instead>[^*]+)|No test runs this: (?P<reason>[^*]+))\.\*\n\n)?"
    r"```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
_STAND_IN = re.compile(r"`([^`]+)`\s+in\s+place\s+of\s+`([^`]+)`")
_HEADING = re.compile(r"^## (.+)$", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: where it is.
        line: of the page, on which its code begins.
        section: the heading above it; "" before the first one.
        language: behind the fence.
        code: its lines, as tests run them.
        not_run: why it is left out.
    """

    page: Path
    line: int
    section: str
    language: str
    code: str
    not_run: str | None

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block, each in one piece and without comments."""
        whole = self.code.replace("\\\n", " ").splitlines()
        return [line for line in whole if shlex.split(line, comments=True)]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        headings = _HEADING.findall(text[: match.start()])
        line = text.count("\n", 0, match.start("code")) + 1
        section = headings[-1] if headings else ""
        code = with_stand_ins(match["code"], match["instead"] or "")
        assert match["language"] != "bash" or programs(code) == programs(match["code"]), (
            f"{page}:{line}: a stand-in must not change the program"
        )
        found.append(Block(page, line, section, match["language"], code, match["reason"]))
    return [block for block in found if block.language in languages]


def with_stand_ins(code: str, instead: str) -> str:
    """Code with the texts of "`NEW` in place of `OLD`" put in.

    Raises:
        AssertionError: a text that is to be replaced is not there.
    """
    pairs = _STAND_IN.findall(instead)
    assert bool(pairs) == bool(instead), f"nothing is replaced: {instead}"
    changed = code
    for new, old in pairs:
        assert old in changed, f"{old!r} is not in the block"
        changed = changed.replace(old, new)
    return changed


def programs(code: str) -> list[list[str]]:
    """The first word of every line."""
    return [line.split()[:1] for line in code.splitlines()]


def run_page(page: Path, folder: Path) -> dict[str, Any]:
    """Run what is on a page, all of it, in a directory; the namespace of its Python code."""
    return run_blocks(blocks(page, "python", "bash"), folder)


def run_blocks(
    some: Iterable[Block], folder: Path, namespace: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run blocks in a directory and in one namespace, which is returned."""
    space = {} if namespace is None else namespace
    with chdir(folder):
        for block in some:
            if block.not_run is None and block.language == "python":
                # Empty lines in front, so that a traceback names the page's own line.
                code = "\n" * (block.line - 1) + block.code
                exec(compile(code, str(block.page), "exec", dont_inherit=True), space)
            elif block.not_run is None:
                for line in block.commands:
                    run_line(line, folder)
    return space


def run_line(line: str, folder: Path) -> None:
    """Run one line of a shell; `revsurgeon` in this process, for speed.

    Raises:
        AssertionError: it did not end with exit code 0.
    """
    program, *arguments = shlex.split(line, comments=True)
    if program != "revsurgeon" or {"|", "&&", ">>"} & set(arguments):
        run_in_shell(line, folder)
        return
    target = None
    if ">" in arguments:
        *arguments, _, target = arguments
    errors = io.StringIO()
    with chdir(folder), redirect_stderr(errors), redirect_stdout(io.StringIO()) as output:
        code = run_command(arguments)
    assert code == 0, f"{line}\n{errors.getvalue()}"
    if target is not None:
        (folder / target).write_text(output.getvalue(), encoding="utf-8")


def run_in_shell(line: str, folder: Path, **environment: str) -> None:
    """Run a line in a shell that finds this installation's programs.

    Raises:
        AssertionError: it did not end with exit code 0.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        ["bash", "-ec", line], cwd=folder, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
