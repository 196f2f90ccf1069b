"""Rewire and check every family of timm, torchvision and transformers, and write down what came out.

    python -m benchmarks.zoo                                # goes on where an earlier run ended
    python -m benchmarks.zoo --only timm --match 'timm:vit*' --again
    python -m benchmarks.zoo --merge other.jsonl            # rows of a run elsewhere, unless they are worse
    python -m benchmarks.zoo --table                        # docs/coverage.md

Every network runs in a process of its own, with random weights and small inputs. It takes about an hour on
one CPU core and needs no network connection.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.zoo.catalogue import LIBRARIES, entries
from benchmarks.zoo.children import rows
from benchmarks.zoo.ratchet import worse
from benchmarks.zoo.results import FILE, Results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, or write its table.

    Returns:
        0; 1 if a network failed.
    """
    options = _parser().parse_args(arguments)
    results = Results(options.results)
    if options.table:
        from benchmarks.zoo.table import write_page

        write_page(results)
        return 0
    if options.merge is not None:
        return int(_merged(results, Results(options.merge)) > 0)
    wanted = [
        entry
        for entry in entries()
        if (options.only is None or entry.library == options.only)
        and fnmatch.fnmatch(entry.key, options.match)
        and (options.again or not results.is_done(entry.key, entry.library))
    ]
    failed = 0
    for row in rows(wanted, jobs=options.jobs, limit=options.limit, memory=options.memory << 30):
        results.add(row)
        failed += row["status"] == "failed"
        shown = " ".join(str(row[name]) for name in ("segments", "reason", "detail") if name in row)
        print(f"{row['key']}: {row['status']} {shown} ({row['seconds']} s)", file=sys.stderr, flush=True)
    results.tidy({entry.key for entry in entries()})
    return int(failed > 0)


def _merged(results: Results, other: Results) -> int:
    """Take rows of another file; those that the ratchet complains about stay as they are, and are counted."""
    complaints = 0
    for key, row in other.rows.items():
        before = results.rows.get(key)
        if row == before or row["status"] == "not tried":
            continue
        complaint = worse(before, row) if before is not None else None
        if complaint is None:
            results.rows[key] = row
        else:
            print(complaint, file=sys.stderr)
            complaints += 1
    results.tidy({entry.key for entry in entries()})
    return complaints


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--only", choices=LIBRARIES, help="one library")
    parser.add_argument("--match", default="*", help="a pattern for names such as timm:resnet18")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one network")
    parser.add_argument("--memory", type=int, default=16, help="GiB of address space for one network")
    parser.add_argument("--again", action="store_true", help="also those that were examined before")
    parser.add_argument("--merge", type=Path, help="take the rows of another results file")
    parser.add_argument("--table", action="store_true", help="write docs/coverage.md from the results")
    parser.add_argument("--results", type=Path, default=FILE, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
