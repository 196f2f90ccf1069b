"""The tables of docs/peers.md, written between two markers from the result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers_goals import is_wrong
from benchmarks.peers_networks import DEPTHS, SUBJECTS
from benchmarks.peers_networks import MEASURED as NETWORKS
from benchmarks.peers_results import MEASURED, NOT_YET, Results
from benchmarks.peers_ways import WAYS

BEGIN = "<!-- from here to the end mark: python -m benchmarks.peers --table -->"
END = "<!-- end mark -->"
MEGABYTE = 1e6

Row = dict[str, Any]


def write_tables(page: Path, results: Sequence[Results]) -> None:
    """Put the tables where they belong.

    Args:
        page: a Markdown file with both markers.
        results: of one device each.

    Raises:
        ValueError: a marker is missing.
    """
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    text = "\n\n".join(part for one in results for part in _device(one))
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _device(results: Results) -> list[str]:
    """All that was measured on one device."""
    name = {"cpu": "CPU", "cuda": "GPU"}[results.document["device"]]
    if not results.rows:
        return [f"## {name}", f"{NOT_YET.capitalize()}."]
    return [
        f"## {name}",
        _circumstances(results.document),
        "### Goals",
        _goals(results.document["goals"]),
        *(part for network in SUBJECTS if _rows(results, network) for part in _network(results, network)),
        *_depths(results),
        *_not_yet(results),
    ]


def _circumstances(document: dict[str, Any]) -> str:
    versions = {**document["versions"], **document["libraries"]}
    told = ", ".join(f"{library} {version}" for library, version in versions.items())
    device = document["gpu"] if document["device"] == "cuda" else document["machine"]["processor"]
    return f"{device}, {document['threads']} threads, Python {document['python']}, {told}."


def _goals(goals: Iterable[dict[str, Any]]) -> str:
    rows = [(g["goal"], g["reached"], _figure(g["figure"]), f"{g['most']:.3g}") for g in goals]
    return _table(("goal", "", "measured", "at most"), rows)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _rows(results: Results, network: str) -> list[Row]:
    """In the order of the ways."""
    return [row for way in WAYS if (row := results.row(network, way))]


COLUMNS: tuple[tuple[str, Callable[[Row, float], str]], ...] = (
    ("saved, MB", lambda row, _: megabytes(row["saved"])),
    ("held, MB", lambda row, _: megabytes(row["held"])),
    ("peak, MB", lambda row, _: megabytes(row["peak"])),
    ("peak without gradients, MB", lambda row, _: megabytes(row["peak_without_gradients"])),
    ("step time", lambda row, _: step_time(row.get("time"))),
    ("error", lambda row, of_stored: error(row["error_float64"], of_stored)),
    ("error, dropout on", lambda row, of_stored: error(row["error_dropout"], of_stored)),
    ("output moved by", lambda row, _: error(row["distance"])),
)


def _network(results: Results, network: str) -> list[str]:
    """One network: a row a way, and below it why some have no figures."""
    rows = _rows(results, network)
    stored = results.row(network, "stored") or {}
    of_stored = stored.get("error_float64", 0.0)
    lines = [
        (
            WAYS[row["row"]].title,
            *(cell(row, of_stored) if row["status"] == MEASURED else _short(row) for _, cell in COLUMNS),
        )
        for row in rows
    ]
    reasons = [
        f"- {WAYS[row['row']].title}: {row['status']}: {row['reason']}."
        for row in rows
        if row["status"] != MEASURED
    ]
    missing = [way.title for key, way in WAYS.items() if results.row(network, key) is None]
    if missing:
        reasons.append(f"- {NOT_YET.capitalize()}: {'; '.join(missing)}.")
    moved = [WAYS[row["row"]].title for row in rows if (row.get("statistics_moved") or 0) > 1]
    if moved:
        reasons.append(f"- Running statistics of batch norm move twice a step with: {', '.join(moved)}.")
    table = _table(("", *(name for name, _ in COLUMNS)), lines)
    return [f"### {SUBJECTS[network].title}", table, *(["\n".join(reasons)] if reasons else [])]


def _not_yet(results: Results) -> list[str]:
    """The networks of which nothing was measured."""
    missing = [SUBJECTS[network].title for network in NETWORKS if not _rows(results, network)]
    return [f"### {NOT_YET.capitalize()}", f"{'; '.join(missing)}."] if missing else []


def _short(row: Row) -> str:
    return "–"  # the reason is below the table


def _depths(results: Results) -> list[str]:
    """One network, deeper and deeper: what is held, and the peak."""
    present = {network: depth for network, depth in DEPTHS.items() if _rows(results, network)}
    if len(present) < 2:
        return []
    header = ("", *(f"{what}, {depth}" for what in ("held", "peak") for depth in present.values()))
    lines = []
    for way in WAYS:
        rows = [results.row(network, way) for network in present]
        if any(row and row["status"] == MEASURED for row in rows):
            cells = [
                megabytes(row[what]) if row and row["status"] == MEASURED else "–"
                for what in ("held", "peak_without_gradients")
                for row in rows
            ]
            lines.append((WAYS[way].title, *cells))
    return ["### ViT-S by depth, MB; peaks without gradients", _table(header, lines)]


def megabytes(count: int | None) -> str:
    """Bytes as megabytes with one decimal."""
    return NOT_YET if count is None else f"{count / MEGABYTE:.1f}"


def error(value: float, of_stored: float | None = None) -> str:
    """A relative error with one digit, 0 only where every bit is equal.

    Args:
        value: the error.
        of_stored: where it is one of gradients, that of stored activations: wrong gradients are bold.
    """
    if value == 0.0:
        return "0"
    text = f"{value:.0e}".replace("e-0", "e-").replace("e+00", "")
    return text if of_stored is None or not is_wrong(value, of_stored) else f"**{text}**"


def step_time(time: dict[str, Any] | None) -> str:
    """A ratio to stored activations, with the quartiles of its rounds."""
    if time is None:
        return NOT_YET
    low, high = time["ratio_quartiles"]
    return f"{time['ratio']:.2f} ({low:.2f} to {high:.2f}, n = {time['n']})"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
