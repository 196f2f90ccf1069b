"""The goals that the comparison is held against, computed from its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers_networks import DEPTHS

if TYPE_CHECKING:
    from benchmarks.peers_results import Results

WRONG = 1e-2
"""A relative error of gradients that nobody can train with, where float32 itself is better than that."""

MEASURED, NOT_YET = "measured", "not measured yet"


def is_wrong(error: float, of_stored: float) -> bool:
    """Whether gradients are wrong: off by a hundredth, and by three times what stored activations are off.

    Args:
        error: relative, of the gradients; NaN is wrong.
        of_stored: that of stored activations in float32, against float64.
    """
    return not error < max(WRONG, 3 * of_stored)


def goals(results: Results) -> list[dict[str, Any]]:
    """Every goal with its figure.

    Bytes are those of the whole network that autograd's hooks see (`saved`, with the input), or those
    that the allocator has not got back (`held`, without it). Times are ratios of medians.
    """
    found = [
        _bytes(results, "videomae-s", "exact-0.1", "stored", 1 / 15),
        _bytes(results, "videomae-s", "exact-0.1", "checkpoint", 1 / 3),
        _bytes(results, "videomae-s", "blocks", "checkpoint", 1 / 3, "held"),
        _bytes(results, "vit-l", "exact-0.1", "stored", 1 / 25),
        _same_peak(results, "re2", 0.02),
    ]
    for network in ("vit-s", "videomae-s"):
        found += [
            _time(results, network, "exact-0.1", "stored", 1.25, device="cuda"),
            _time(results, network, "exact-0.1", "checkpoint", 1.0),
            _time(results, network, "blocks", "checkpoint", 1.0),
            _time(results, network, "exact-0.1", "float-0.1", 1.08),
        ]
    return found


def _bytes(
    results: Results, network: str, way: str, other: str, most: float, column: str = "saved"
) -> dict[str, Any]:
    goal = f"{network}: bytes {column} by {way} at most 1/{1 / most:.0f} of {other}"
    rows = [results.row(network, name) for name in (way, other)]
    if any(row is None or row["status"] != MEASURED for row in rows):
        return _goal(goal, None, most)
    ours, theirs = (row[column] for row in rows if row)
    return _goal(goal, ours / theirs, most)


def _same_peak(results: Results, way: str, most: float) -> dict[str, Any]:
    """How far the peak moves from the shallowest to the deepest, parameters and their gradients left out."""
    goal = f"the same peak of {way} from depth {min(DEPTHS.values())} to {max(DEPTHS.values())}"
    rows = [results.row(network, way) for network in DEPTHS]
    if any(row is None or row["status"] != MEASURED for row in rows):
        return _goal(goal, None, most)
    peaks = [row["peak_without_gradients"] for row in rows if row]
    return _goal(goal, max(peaks) / min(peaks) - 1.0, most)


def _time(
    results: Results, network: str, way: str, other: str, most: float, device: str | None = None
) -> dict[str, Any]:
    goal = f"{network}: step time of {way} at most {most:g} of {other}" + (f", on {device}" if device else "")
    rows = [results.row(network, name) for name in (way, other)]
    times = [row.get("time") if row else None for row in rows]
    if (device and results.document["device"] != device) or not all(times):
        return _goal(goal, None, most)
    ours, theirs = (time["ratio"] for time in times if time)
    return _goal(goal, ours / theirs, most)


def _goal(goal: str, figure: float | None, most: float) -> dict[str, Any]:
    """A goal as JSON takes it."""
    reached = NOT_YET if figure is None else "reached" if figure <= most else "not reached"
    return {"goal": goal, "figure": figure, "most": most, "reached": reached}
