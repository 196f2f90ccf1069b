"""The command line: words, options and exit codes; what it does is done by the package."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process and leave with its exit code (see revsurgeon/errors.py)."""
    try:
        from revsurgeon.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while the imports ran; run() handles it from there on
        print("Interrupted.", file=sys.stderr)
        code = 130
    sys.exit(code)
