"""Write docs/coverage.md from the rows of a sweep: nothing on that page is typed by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.conversion import RESULT
from benchmarks.zoo.catalogue import LIBRARIES
from benchmarks.zoo.papers import recorded, section
from benchmarks.zoo.results import Results

_ORDER = ("converted", "left alone", "failed")

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"

_HEAD = """\
<!-- Written by python -m benchmarks.zoo --table; do not edit. -->
# What converts

Every family of timm, those of torchvision's classification, video, segmentation and detection models that are
listed below, and {transformers} architectures of transformers were rewired with random weights on small
inputs, each in a process of its own. *Converted* means that all of this holds:

- at (alpha, beta) = (1, 0) every output is the source network's, `torch.equal`, on batches of 3 and of 2, and
  parameters are the same objects under the same names;
- beta = .5 changes what every chain returns;
- in training mode, with dropout and stochastic depth on, exact arithmetic at (.9, .1) gives the gradients of
  stored activations, `torch.equal` for every parameter, and the same outputs, statistics and random state;
- float arithmetic in float64 at (.3, .7) gives them up to rounding (bound: 10^4 n eps / .7^n, n being the
  segments of the longest chain). Networks that do not run in float64 themselves are marked "-".

A network with a single segment in every chain converts, but saves nothing worth having: look at the column of
chains. *Left alone* networks keep their own backward; the reason codes are explained in
[not-converted.md](not-converted.md). *Saved* compares the bytes that one training forward keeps for its
backward, stored and reversible in exact arithmetic at beta .1, whole network, at these small inputs; at real
sizes and depths the share is another one ([peers.md](peers.md)).

What was not tried is in no count: types of transformers whose configurations did not run at a small size or
within the time limit (sam, swin2sr, longformer, led, rwkv, maskformer, align, esm, glm, eomt, lxmert, mra and
those for time series among them), and types that there was no time for. {commits}
`pytest -m slow tests/zoo` tries all of them again and compares with these rows.

"""

_SYSTEMS = """\
## The papers' systems

Each has a recipe, and a small network of its kind is rewired and trained with exact gradients by a test.
In re2 mode Video Swin, SlowFast and ResNets are compared with Re2TAL's equations, written down on their own.
What follows is found in the networks of full size, by `python -m benchmarks.zoo.papers`, without weights.

"""


_LARGE = """\
## Large checkpoints

`revsurgeon convert` with all its checks was run on a checkpoint of {weights:.1f} GB in {shards} files, the
largest of {largest:.2f} GB: a vision transformer with random weights. The process itself held {own:.2f} GB at
most; on the demo network it holds {demo:.2f} GB, which is torch and transformers. Weights are pages of files
that the system takes back when it needs the memory: of the checkpoint or, where a tensor has to be copied, of
a file without a name in TMPDIR. Measured by `python -m benchmarks.conversion_sharded` ({date}).

"""


def write_page(results: Results, page: Path = PAGE) -> None:
    """Write the page."""
    page.write_text(text(list(results.rows.values()), recorded()))


def text(rows: list[dict[str, Any]], systems: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        rows: of the sweep.
        systems: the papers' ones, as `benchmarks.zoo.papers` finds them.
    """
    tried = [row for row in rows if row["status"] != "not tried"]
    count = sum(row["library"] == "transformers" for row in tried)
    parts = [_HEAD.format(transformers=count, commits=_commits(tried)), _summary(rows), _out_of_reach(tried)]
    parts.append(f"{_SYSTEMS}{section(systems)}\n")
    parts.append(_large(json.loads(RESULT.read_text()).get("sharded")))
    for library in LIBRARIES:
        found = [row for row in tried if row["library"] == library]
        if found:
            parts.append(_section(library, found))
    missing = [row for row in rows if row["status"] == "not tried"]
    if missing:
        parts.append("## Not tried\n\nThe network itself could not be made small, or did not run here.\n\n")
        parts.append("".join(f"- `{row['key']}`: {_plain(row['detail'])}\n" for row in missing))
    return "".join(parts)


def _large(found: dict[str, Any] | None) -> str:
    """What `benchmarks.conversion_sharded` measured; nothing where it has not run."""
    if found is None:
        return ""
    return _LARGE.format(
        weights=found["weights_bytes"] / 1e9,
        shards=found["shards"],
        largest=found["largest_shard_bytes"] / 1e9,
        own=found["peak_bytes"]["RssAnon"] / 1e9,
        demo=found["demo"]["peak_bytes"]["RssAnon"] / 1e9,
        date=found["date"],
    )


def _commits(rows: list[dict[str, Any]]) -> str:
    """Which rows are of which commit."""
    counts = Counter(row.get("commit") for row in rows)
    parts = [f"{n} at commit {commit}" for commit, n in sorted(counts.items(), key=str) if commit]
    if counts[None]:
        parts.append(
            f"{counts[None]} before rows named their commit, while the last mechanisms were being added"
        )
    return f"When the {len(rows)} rows were examined: {'; '.join(parts)}."


def _out_of_reach(rows: list[dict[str, Any]]) -> str:
    """The networks of torchvision that add nothing anywhere: no converter could do more."""
    library = [r for r in rows if r["library"] == "torchvision"]
    without = [r["key"].removeprefix("torchvision:") for r in library if r["status"] == "left alone"]
    return (
        f"The {len(without)} networks of torchvision that are left alone add nothing to an input anywhere: "
        f"{', '.join(without)}. For which reason a network is left alone is pinned by a test.\n\n"
    )


def _summary(rows: list[dict[str, Any]]) -> str:
    """A line for each library. In timm a family counts once, by its member that does best."""
    columns = ("tried", "converted", "with a chain of two or more", "left alone", "failed", "when, with")
    lines = [f"| library | {' | '.join(columns)} |\n", "| --- " * (len(columns) + 1) + "|\n"]
    for library in LIBRARIES:
        found = [r for r in rows if r["library"] == library and r["status"] != "not tried"]
        if not found:
            continue
        units: dict[str, list[dict[str, Any]]] = {}
        for row in found:
            units.setdefault(row["family"] if library == "timm" else row["key"], []).append(row)
        states = Counter(min((r["status"] for r in unit), key=_ORDER.index) for unit in units.values())
        longest = [
            max(max(r["segments"]) if r["status"] == "converted" else 0 for r in unit)
            for unit in units.values()
        ]
        versions = sorted({", ".join(f"{n} {v}" for n, v in r["versions"].items()) for r in found})
        dates = sorted({r["date"] for r in found})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        what = f"{len(units)} families" if library == "timm" else str(len(units))
        lines.append(
            f"| {library} | {what} | {states['converted']} | {sum(n > 1 for n in longest)} "
            f"| {states['left alone']} | {states['failed']} | {when}; {'; '.join(versions)} |\n"
        )
    return "".join(lines) + "\n"


def _section(library: str, rows: list[dict[str, Any]]) -> str:
    parts = [f"## {library}\n\n"]
    converted = [r for r in rows if r["status"] == "converted"]
    columns = ("network", "stands for", "segments of its chains", "parameters inside", "kept, MB", "saved")
    parts.append(f"| {' | '.join(columns)} | float64 error |\n")
    parts.append("| --- | --- | --- | --- | --- | --- | --- |\n")
    for row in sorted(converted, key=lambda r: (r["family"], r["key"])):
        parts.append(_converted(row))
    others = [r for r in rows if r["status"] != "converted"]
    if others:
        parts.append("\n| network | stands for | outcome | what was seen |\n| --- | --- | --- | --- |\n")
        for row in sorted(others, key=lambda r: (r["status"], r.get("reason", ""), r["key"])):
            outcome = f"`{row['reason']}`" if row["status"] == "left alone" else "failed"
            parts.append(f"| {row['key']} | {row['family']} | {outcome} | {_plain(row['detail'])} |\n")
    return "".join(parts) + "\n"


def _converted(row: dict[str, Any]) -> str:
    stored, kept = row["stored_bytes"], row["reversible_bytes"]
    chains = ", ".join(map(str, row["segments"]))
    error = row.get("float64_error", "-")
    return (
        f"| {row['key']} | {row['family']} | {chains} | {row['share']:.0%} "
        f"| {stored / 1e6:.1f} to {kept / 1e6:.1f} | {1 - kept / stored:.0%} | {error} |\n"
    )


def _plain(detail: str) -> str:
    """Words that break no table: no bars, no line ends, no paths of this machine."""
    return json.dumps(detail, ensure_ascii=False)[1:-1].replace("|", "/")[:160]
