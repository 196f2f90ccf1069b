"""The one place that writes: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import typer

from revsurgeon.cli.errors import BROKEN_PIPE, describe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PACKAGE = str(Path(__file__).parent.parent)
_WIDTH_OF_A_PIPE = 10_000  # lines are not broken there, so that grep finds what is on them


class Output:
    """What one command writes, and how: for people, for scripts (`--quiet`), or as JSON.

    Used as a context manager around a command's body. While it is open, whatever a library prints
    goes to standard error, so that standard output holds the result alone. An exception that leaves
    the body is reported and becomes a SystemExit with its code.

    Args:
        as_json: write one JSON document, and only at the end.
        quiet: no progress, and only the brief form of the result.
        debug: show tracebacks and the warnings of libraries.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.debug = debug
        self._stdout: TextIO = sys.stdout
        self._stack = ExitStack()

    def __enter__(self) -> Output:
        self._stdout = sys.stdout
        self._stack.enter_context(redirect_stdout(sys.stderr))
        self._stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = self._show_warning
        # torch logs, with a traceback, what a network without values fails by; the error says it in words.
        log = logging.getLogger("torch._subclasses.fake_tensor")
        self._stack.callback(setattr, log, "disabled", log.disabled)
        log.disabled = not self.debug
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if error is None or isinstance(error, typer.Exit | SystemExit | GeneratorExit):
            return
        # Not typer.Exit: Typer makes one of its own from a Ctrl-C that comes outside a command's body.
        raise SystemExit(self.fail(error)) from error

    # -- results -----------------------------------------------------------------------------

    @property
    def for_people(self) -> bool:
        """Whether a person reads along: neither JSON nor --quiet."""
        return not (self.as_json or self.quiet)

    def result(self, document: dict[str, Any], *lines: RenderableType, brief: str | None = None) -> None:
        """Write a command's result once, in the form that was asked for.

        Args:
            document: all of it, as JSON-able values.
            lines: the form for people; strings are written as they are, the rest by rich.
            brief: the one value a script wants, written with --quiet.
        """
        if self.as_json:
            self._write(json.dumps(document, indent=2))
        elif self.quiet:
            if brief is not None:
                self._write(brief)
        else:
            self.print(*lines)

    def print(self, *lines: RenderableType) -> None:
        """Write lines for people to standard output; nothing with --json or --quiet."""
        if not self.for_people:
            return
        for line in lines:
            if isinstance(line, str):
                self._write(line)  # never wrapped, never coloured: paths, YAML, commands to copy
            else:
                console(self._stdout).print(line)
                self._stdout.flush()

    def heading(self, text: str) -> None:
        """Write a line that starts a part of a longer output for people."""
        from rich.text import Text

        self.print("", Text(text, style="bold"))

    @property
    def on_terminal(self) -> bool:
        """Whether the result goes to a terminal, where colours may help."""
        return self._stdout.isatty()

    @property
    def width(self) -> int | None:
        """Columns of the terminal that the result goes to; None where it goes elsewhere."""
        return shutil.get_terminal_size().columns if self.on_terminal else None

    def _write(self, text: str) -> None:
        self._stdout.write(text + "\n")
        self._stdout.flush()

    # -- progress, warnings, errors ----------------------------------------------------------

    def step(self, text: str) -> None:
        """Say what is being done now: one line on standard error, none with --quiet.

        No spinner: the Hub's download bars appear between these lines, and two writers that move the
        cursor on one terminal spoil each other's lines.
        """
        if self.quiet:
            return
        if sys.stderr.isatty():
            from rich.text import Text

            console(sys.stderr).print(Text(text, style="dim"), soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if self.debug:
            print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr, end="")
        elif filename.startswith(_PACKAGE) and not self.quiet:
            print(f"Warning: {message}", file=sys.stderr)

    def fail(self, error: BaseException) -> int:
        """Report an error to standard error, as the JSON document too if asked for; return its exit code."""
        failure = describe(error)
        if failure.exit_code == BROKEN_PIPE:
            # Python would complain once more when it flushes standard output at the very end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return failure.exit_code
        if self.debug:
            traceback.print_exception(error)
        _print_failure(failure.text(), failure.kind)
        if self.as_json:
            self._write(json.dumps(failure.document(), indent=2))
        return failure.exit_code


def _print_failure(text: str, kind: str) -> None:
    if not sys.stderr.isatty():
        print(text, file=sys.stderr)
        return
    from rich.text import Text

    styled = Text(text)
    styled.stylize("bold red", 0, len(kind))
    console(sys.stderr).print(styled, soft_wrap=True)


def console(stream: TextIO) -> Console:
    """Return rich's writer for a stream: as wide as the terminal; in a pipe COLUMNS, if set."""
    from rich.console import Console

    width = None
    if not stream.isatty():
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isdecimal() and int(columns) > 0 else _WIDTH_OF_A_PIPE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def columns(rows: Sequence[tuple[str, ...]], width: int | None) -> str:
    """Return aligned columns as plain text, without rich, whose import costs more than a list.

    Args:
        rows: of equally many texts; the last one is wrapped.
        width: of the terminal; None wraps nothing.
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)]
    indent = sum(widths) + 2 * len(widths)
    if width is not None and width - indent < 24:  # too narrow: the last column goes below the others
        indent = 4
    lines = []
    for row in rows:
        head = "".join(f"{text:<{size}}  " for text, size in zip(row, widths, strict=False))
        tail = textwrap.wrap(row[-1], width - indent) if width is not None else [row[-1]]
        if indent < len(head):
            lines += [head.rstrip(), *(" " * indent + line for line in tail)]
        else:
            lines += [head + (tail[0] if tail else ""), *(" " * indent + line for line in tail[1:])]
    return "\n".join(line.rstrip() for line in lines)
