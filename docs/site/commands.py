"""The page of all commands: their help, as the installed program prints it."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

from revsurgeon.cli.app import run

COMMANDS = (
    "convert",
    "inspect",
    "verify",
    "errmap",
    "memory",
    "bench",
    "export",
    "push",
    "recipes",
    "recipes list",
    "recipes show",
    "recipes validate",
    "recipes schema",
    "demo",
)


def page() -> str:
    """Markdown with a section a command."""
    parts = ["# The command line", _help(()), *(f"## {name}\n\n{_help(name.split())}" for name in COMMANDS)]
    return "\n\n".join(parts) + "\n"


def _help(words: list[str] | tuple[str, ...]) -> str:
    with redirect_stdout(io.StringIO()) as shown:
        code = run([*words, "--help"])
    if code:
        raise RuntimeError(f"revsurgeon {' '.join(words)} --help ends with {code}")
    return f"```text\n{shown.getvalue().strip()}\n```"
