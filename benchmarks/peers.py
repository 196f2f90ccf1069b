"""Ways to train one network in little memory, side by side: stored, checkpointed, compiled, reversible.

    python -m benchmarks.peers            # bytes, peaks and errors; goes on where an earlier run ended
    python -m benchmarks.peers --time     # step times, on a machine that does nothing else
    python -m benchmarks.peers --table    # the tables of docs/peers.md, and the figure

The first takes hours on two CPU cores and needs about 12 GB and no network. Every row is measured in a
process of its own and written to benchmarks/results/peers.json (peers_cuda.json with `--device cuda`) when it
is done. The reversible libraries of the package registry come with `pip install 'revsurgeon[bench]'`; a row
of one that is not installed says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers_child import killed_first, measure_here, row_in_child
from benchmarks.peers_networks import MEASURED, SUBJECTS
from benchmarks.peers_results import Results
from benchmarks.peers_ways import WAYS

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "peers.md"

MeasureRow = Callable[..., dict[str, Any]]


def measure_all(
    results: Results,
    networks: Sequence[str],
    ways: Sequence[str],
    *,
    batch: int,
    limit: float,
    again: bool = False,
    measure: MeasureRow = row_in_child,
) -> None:
    """Measure all rows that are not there yet.

    Args:
        results: what is there; written after every row.
        networks: keys of subjects.
        ways: keys of ways.
        batch: samples.
        limit: seconds for one row.
        again: measure those that are there too.
        measure: `row_in_child`, or a stand-in of it.
    """
    results.note_circumstances(batch)
    for network in networks:
        for way in ways:
            old = results.row(network, way)
            if old is not None and not again:
                continue
            row = measure(network, way, batch=batch, device=results.document["device"], limit=limit)
            if old is not None and "time" in old and row["status"] == "measured":
                row["time"] = old["time"]
            results.put(row)
            print(network, way, row["status"], row.get("reason", ""), file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, and do one of the three things."""
    chosen = _parser().parse_args(arguments)
    networks, ways = chosen.network or MEASURED, chosen.row or list(WAYS)
    if chosen.child:
        killed_first()
        (network,), (way,) = networks, ways
        row = measure_here(network, way, batch=chosen.batch, device=chosen.device)
        chosen.child.write_text(json.dumps(row))
        return
    if chosen.serve:
        from benchmarks.peers_time import serve

        serve(networks[0], ways[0], batch=chosen.batch, device=chosen.device)
        return
    results = Results.read(chosen.output, chosen.device)
    if chosen.table:
        from benchmarks.peers_figure import draw
        from benchmarks.peers_table import write_tables

        write_tables(chosen.page, [Results.read(chosen.output, device) for device in ("cpu", "cuda")])
        if results.rows:
            draw(results.document, results.path.with_suffix(".png"))
    elif chosen.time:
        from benchmarks.peers_time import time_all

        options = {"batch": chosen.batch, "steps": chosen.steps, "together": chosen.together}
        time_all(results, networks, ways, limit=chosen.limit, **options)
    else:
        measure_all(results, networks, ways, batch=chosen.batch, limit=chosen.limit, again=chosen.again)
    for goal in results.document["goals"]:
        figure = "" if goal["figure"] is None else f" ({goal['figure']:.3g}, wanted {goal['most']:.3g})"
        print(f"{goal['goal']}: {goal['reached']}{figure}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--network", action="append", choices=list(SUBJECTS), help="all of them by default")
    parser.add_argument("--row", action="append", choices=list(WAYS), help="all of them by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--limit", type=float, default=900, help="seconds for one row")
    parser.add_argument("--again", action="store_true", help="measure rows that are there once more")
    parser.add_argument("--no-time", action="store_true", help="measure bytes, peaks and errors: the default")
    parser.add_argument("--time", action="store_true", help="fill in the step times of measured rows")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each row, after two others")
    parser.add_argument("--together", type=int, default=5, help="rows in memory at a time while timing")
    parser.add_argument("--table", action="store_true", help="write tables and figure from what was measured")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that the tables are on")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
