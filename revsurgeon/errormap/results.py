"""The files of a map: JSON with everything, CSV for spreadsheets. Both are whole at any moment.

They are written anew beside themselves as points come and renamed over, so that a run that is killed leaves
the points that were done, and a run that goes on begins with them.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from revsurgeon.errormap.comparison import METRICS
from revsurgeon.errormap.error_map import ErrorMap
from revsurgeon.errormap.point import Point
from revsurgeon.errors import UsageError
from revsurgeon.files import write_text

COLUMNS = ("alpha", "beta", "drift", "bits", "exact_bytes", "arithmetic", "chain", *METRICS, "anchors_every")
_LARGEST_FILE = 2**28


class Keeper:
    """Writes a growing map as often as is cheap: so that at most a twentieth of the time goes into it.

    Args:
        stem: of the files; None writes nothing.
    """

    def __init__(self, stem: Path | None) -> None:
        self.stem = stem
        self._due = 0.0

    def keep(self, found: ErrorMap, *, now: bool = False) -> None:
        """Write the map if it is time to, or in any case."""
        began = time.monotonic()
        if self.stem is None or not (now or began >= self._due):
            return
        write_results(found, self.stem)
        ended = time.monotonic()
        self._due = ended + 20.0 * (ended - began)


def write_results(found: ErrorMap, stem: Path) -> None:
    """Write STEM.json and STEM.csv.

    Raises:
        OSError: the files cannot be written.
    """
    write_text(_named(stem, ".json"), json.dumps(found.to_dict(), indent=1) + "\n")
    write_text(_named(stem, ".csv"), _csv(found))


def read_results(stem: Path) -> ErrorMap | None:
    """Read STEM.json; None if there is no such file.

    Raises:
        UsageError: it is not a map.
    """
    path = _named(stem, ".json")
    if not path.exists():
        return None
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("it is too large")
        return ErrorMap.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UsageError(
            f"the file is not an error map ({type(error).__name__}: {error}).",
            where=str(path),
            hint="Write elsewhere with --output, or replace it with --force.",
        ) from None


def continued(stem: Path, configuration: Mapping[str, Any], *, resume: bool, force: bool) -> ErrorMap:
    """The map to go on with: the one in STEM.json, or an empty one.

    Args:
        stem: of the files.
        configuration: of the map that is to be measured.
        resume: go on with the points that are there.
        force: begin anew over a map that is there.

    Raises:
        UsageError: there is a map and neither was asked for, or it is of something else.
    """
    if force and not resume:
        return ErrorMap(configuration)
    there = read_results(stem)
    path = _named(stem, ".json")
    if there is None or not there.grid:
        return ErrorMap(configuration)
    if not resume:
        raise UsageError(
            "there is an error map already.",
            where=str(path),
            hint="Go on with it (--resume), replace it (--force), or write elsewhere (--output).",
        )
    different = _differences(there.configuration, configuration)
    if different:
        raise UsageError(
            "the error map that is there was measured differently, so it cannot be gone on with.",
            where="\n".join([str(path), *different]),
            hint="Ask for the same again, replace it (--force), or write elsewhere (--output).",
        )
    return there


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in sorted({*there, *wanted}):
        a, b = json.dumps(there.get(key)), json.dumps(wanted.get(key))
        if a != b:
            lines.append(f"{key}: {_short(a)} there, {_short(b)} now")
    return lines


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def rows(point: Point) -> Iterator[dict[str, Any]]:
    """The lines that a point has in the CSV: one for all parameters and one a chain, in each arithmetic."""
    place = {
        "alpha": point.alpha,
        "beta": point.beta,
        "drift": point.drift,
        "bits": point.bits,
        "exact_bytes": point.exact_bytes,
    }
    if not point.errors:
        yield place
    for arithmetic, errors in point.errors.items():
        anchors = errors.anchors_every if arithmetic == "float" else None
        for chain, found in (("", errors.whole), *((c.name, c.errors) for c in errors.chains)):
            measures = {name: getattr(found, name) for name in METRICS}
            yield {
                **place,
                "arithmetic": arithmetic,
                "chain": chain,
                **measures,
                "anchors_every": anchors if chain == "" else None,
            }


def _csv(found: ErrorMap) -> str:
    """Numbers are written so that they read back equal; an empty cell is a measure that does not apply."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for place in found.axes.points:
        if place in found.grid:
            writer.writerows(rows(found.grid[place]))
    return file.getvalue()


def _named(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)
