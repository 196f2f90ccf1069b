"""One row in a process of its own: whatever happens there, it is one row and not the end of the run."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NO_MEMORY = ("OutOfMemoryError", "can't allocate memory", "not enough memory", "MemoryError")
"""How a process that is out of memory says so in its last line."""


def row_in_child(network: str, way: str, *, batch: int, device: str, limit: float) -> dict[str, Any]:
    """Measure one row in a child.

    Args:
        network: key of a subject.
        way: key of a way.
        batch: samples.
        device: "cpu" or "cuda".
        limit: seconds until it is given up.

    Returns:
        The row, with `status` "measured", "not installed", "does not apply", "did not fit", "did not finish"
        or "failed", and a reason with every other than the first.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.json"
        command = [
            *(sys.executable, "-m", "benchmarks.peers", "--network", network, "--row", way),
            *("--batch", str(batch), "--device", device, "--child", str(result)),
        ]
        start = time.monotonic()
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        ended = wait(child, limit)
        row = {
            **{"network": network, "row": way, "batch": batch},
            **(json.loads(result.read_text()) if result.exists() else ended),
        }
    row["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    row["seconds"] = round(time.monotonic() - start)
    return row


def wait(child: subprocess.Popen[str], limit: float) -> dict[str, str]:
    """Wait for a child, and say how it ended where it left no result."""
    try:
        _, errors = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        end(child)
        return {"status": "did not finish", "reason": f"stopped after {limit:.0f} s"}
    last = (errors.strip().splitlines() or [""])[-1]
    if child.returncode == -signal.SIGKILL or any(words in last for words in NO_MEMORY):
        return {"status": "did not fit", "reason": last or "killed by the system"}
    return {"status": "failed", "reason": last or f"exit code {child.returncode}"}


def end(child: subprocess.Popen[str]) -> None:
    """End a child and the compilers that it started."""
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def measure_here(network: str, way: str, *, batch: int, device: str) -> dict[str, Any]:
    """Measure one row in this process; what the child does."""
    from benchmarks.peers_couplings import NotMeasured
    from benchmarks.peers_measure import measure_row
    from benchmarks.peers_networks import SUBJECTS
    from benchmarks.peers_ways import WAYS

    try:
        figures = measure_row(SUBJECTS[network], WAYS[way], batch=batch, device=device)
    except NotMeasured as outcome:
        return {"status": outcome.status, "reason": outcome.reason}
    return {"status": "measured", **figures}


def killed_first() -> None:
    """Where memory runs out, the system is to end this process rather than another one (Linux)."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")
