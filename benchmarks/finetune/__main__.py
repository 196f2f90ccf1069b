"""Finetune a pretrained network in many ways, or write the page that compares them.

    python -m benchmarks.finetune digits                       # goes on where an earlier run ended
    python -m benchmarks.finetune video --arms conventional,re2 --seeds 3 --jobs 2
    python -m benchmarks.finetune video-large --device cuda    # the same as video, for a GPU
    python -m benchmarks.finetune --table                      # docs/evidence.md

All but the large one run on one thread of a CPU; all arms and 5 seeds of the three take about an hour of
a core.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.finetune.arms import ARMS
from benchmarks.finetune.results import FOLDER, PAGE, Results
from benchmarks.finetune.sweep import Sweep, rows
from benchmarks.finetune.task import REHEARSAL
from benchmarks.finetune.tasks import TASKS

SEEDS = 5
REHEARSED = ("conventional", "paper-float", "hold-auto")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing of a task, or write the page.

    Returns:
        0; 1 if a run failed.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.table:
        from benchmarks.finetune.page import write_page

        write_page(options.results, options.page)
        return 0
    if options.task is None:
        parser.error("name a task, or ask for the page with --table")
    arms = options.arms.split(",") if options.arms else list(REHEARSED if options.rehearse else ARMS)
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        parser.error(f"there is no arm {unknown[0]}; choose of: {', '.join(ARMS)}")
    if not options.rehearse:
        return _run_missing(Sweep(options.task, device=options.device), arms, options)
    with TemporaryDirectory() as folder:
        sweep = Sweep(options.task, REHEARSAL, options.device, Path(folder))
        return _run_missing(sweep, arms, Namespace(seeds=1, jobs=1, results=Path(folder)))


def _run_missing(sweep: Sweep, arms: Sequence[str], options: Namespace) -> int:
    results = Results(sweep.name, options.results)
    settings = sweep.task().settings.to_dict()
    # Seed by seed, so that a sweep that is cut short has as many of each arm.
    wanted = [
        (arm, seed)
        for seed in range(options.seeds)
        for arm in arms
        if not results.is_done(arm, seed, settings)
    ]
    failed = 0
    for number, row in enumerate(rows(sweep, wanted, options.jobs), start=1):
        results.add(row)
        failed += row["status"] == "failed"
        shown = f"{row['score']:.1f}" if "score" in row else row["detail"]
        told = f"{row['arm']}, seed {row['seed']}: {row['status']} {shown} ({row['cpu_seconds']} s)"
        print(f"{sweep.name} {number}/{len(wanted)} {told}", file=sys.stderr, flush=True)
    return int(failed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", nargs="?", choices=list(TASKS))
    parser.add_argument("--arms", help=f"some of them, with commas between: {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"0, 1, ... ({SEEDS})")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--rehearse", action="store_true", help="two steps of a few arms, to see that it runs; keep nothing"
    )
    parser.add_argument("--table", action="store_true", help="write docs/evidence.md from the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="with --table: the page to write to")
    parser.add_argument("--results", type=Path, default=FOLDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
