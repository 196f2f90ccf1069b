"""The tables of docs/evidence.md, written between two markers from the files of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.finetune.arms import ARMS, TAU, UPDATES
from benchmarks.finetune.claims import CHOICES, MARGIN, OURS, PAPERS, Claim
from benchmarks.finetune.results import FOLDER, PAGE, Results
from benchmarks.finetune.statistics import Spread, difference, figures
from benchmarks.finetune.tasks import FOR_A_GPU, TASKS

BEGIN = "<!-- from here to the end mark: python -m benchmarks.finetune --table -->"
END = "<!-- end mark -->"
NOT_YET = "not run yet"

_MAIN: tuple[str, ...] = (
    "conventional",
    "frozen",
    "re2-scratch",
    "re2",
    "fixed-float",
    "fixed-exact",
    "paper-float",
)
_MAIN += ("paper-exact", "balanced", "hold", "hold-auto")
_ABLATIONS: Mapping[str, Sequence[str]] = {
    "Order: both at once, or one after the other": ("paper-exact", "alpha-first", "beta-first"),
    "Policy: linear, exponential, logarithmic": ("paper-exact", "exponential", "logarithmic"),
    "Frequency (eta)": ("every-step", "paper-exact", "rarely"),
    "Start": ("paper-exact", "start-.9", "start-.95", "start-.99"),
}


def write_page(folder: Path = FOLDER, page: Path = PAGE) -> None:
    """Put the tables where they belong.

    Args:
        folder: of the result files; one that is missing is "not run yet".
        page: a Markdown file with both markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    text = tables(shown(folder))
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def shown(folder: Path = FOLDER) -> dict[str, Results]:
    """The results that the page has columns for: those for a GPU once there are any."""
    found = {name: Results(name, folder) for name in TASKS}
    return {name: result for name, result in found.items() if result.rows or name not in FOR_A_GPU}


def tables(results: Mapping[str, Results]) -> str:
    """Everything between the markers."""
    parts = [
        "## Setup",
        _setup(results),
        "## Results",
        _circumstances(results),
        _scores(results, _MAIN),
        *(f"### {title}\n\n{_scores(results, arms)}" for title, arms in _ABLATIONS.items()),
        "### Set to (1, 0) afterwards",
        "The score at (1, 0) minus the score at the coefficients that training ended with.",
        _afterwards(results),
        "### Errors of the gradients",
        "`||g_reversible - g_stored|| / ||g_stored||` of the whole gradient on one training batch: before "
        "the first step, after the last; the largest of the seeds. Arms that are not listed have 0.",
        _gradients(results),
        "## The papers' claims",
        "In each cell: the mean difference ± its standard deviation over the seeds, and its 95 % interval.",
        _claims(PAPERS, results),
        "### Choices that Dr2Net compares",
        _claims(CHOICES, results),
        "## This project's claims",
        _claims(OURS, results),
    ]
    return "\n\n".join(parts) + "\n"


def _setup(results: Mapping[str, Results]) -> str:
    lines = []
    for name in results:
        task = TASKS[name](None)
        s = task.settings
        lines.append(
            f"- **{name}** ({task.metric}): {task.text}. {s.steps} steps of {s.batch} samples, learning rate "
            f"{s.learning_rate:g}, {s.samples} labelled samples; pretraining {s.pretraining_steps} steps of "
            f"{s.pretraining_batch}, learning rate {s.pretraining_rate:g}."
        )
    every = [f"{max(1, TASKS[name](None).settings.steps // UPDATES)} ({name})" for name in results]
    lines.append(
        f"- *paper* is the preset `dr2-paper` with its times in shares of the training: the end point is "
        f"reached after {TAU:.0%}, and until then the coefficients move every so many steps: "
        f"{', '.join(every)}. Where that is 1, `every-step` is the same again."
    )
    return "\n".join(lines)


def _circumstances(results: Mapping[str, Results]) -> str:
    rows = [row for result in results.values() for row in result.rows.values()]
    if not rows:
        return f"{NOT_YET.capitalize()}."
    versions = sorted({", ".join(f"{n} {v}" for n, v in row["versions"].items()) for row in rows})
    processors = sorted({row.get("gpu") or f"one thread of {row['machine']['processor']}" for row in rows})
    dates = sorted({row["date"] for row in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    minutes = sum(row["cpu_seconds"] for row in rows) / 60
    return (
        f"{len(rows)} runs on {'; '.join(processors)}; {minutes:.0f} minutes of a core; {when}; "
        f"{'; '.join(versions)}. In each cell: mean ± standard deviation over the seeds in per cent, and in "
        "parentheses the difference to *conventional*, paired by seed. n is 5 unless the cell says otherwise."
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _scores(results: Mapping[str, Results], arms: Sequence[str]) -> str:
    heads = [f"{name}, {TASKS[name](None).metric}" for name in results]
    lines = [[f"`{a}`", ARMS[a].text, *(_score(r, a) for r in results.values())] for a in arms]
    return _table(["arm", "", *heads], lines)


def _score(results: Results, arm: str) -> str:
    spread = Spread.of(list(figures(results, arm).values()))
    lost = [row for (a, _), row in results.rows.items() if a == arm and row["status"] != "done"]
    told = f"{len(lost)} {' and '.join(sorted({row['status'] for row in lost}))}"
    if spread is None:
        return told if lost else NOT_YET
    against = difference(results, (arm, "score"), ("conventional", "score"))
    text = spread.text()
    if arm != "conventional" and against is not None:
        text += f" ({against.text(sign=True)})"
    if spread.count != 5:
        text += f", n = {spread.count}"
    return f"{text}; {told}" if lost else text


def _afterwards(results: Mapping[str, Results]) -> str:
    lines = []
    for arm in ARMS.values():
        if arm.preset is None:
            continue
        found = [difference(r, (arm.name, "score_at_1_0"), (arm.name, "score")) for r in results.values()]
        lines.append([f"`{arm.name}`", *(NOT_YET if s is None else s.text(sign=True) for s in found)])
    return _table(["arm", *results], lines)


def _gradients(results: Mapping[str, Results]) -> str:
    lines = []
    for arm in ARMS.values():
        cells = [_largest_errors(r, arm.name) for r in results.values()]
        if any(cell not in ("0, 0", NOT_YET) for cell in cells):
            lines.append([f"`{arm.name}`", *cells])
    return _table(["arm", *results], lines) if lines else NOT_YET.capitalize() + "."


def _largest_errors(results: Results, arm: str) -> str:
    rows: list[dict[str, Any]] = [row for (a, _), row in results.rows.items() if a == arm]
    rows = [row for row in rows if "gradient_error_at_end" in row]
    if not rows:
        return NOT_YET
    errors = []
    for name in ("gradient_error_at_start", "gradient_error_at_end"):
        found = [row[name] for row in rows]
        errors.append("not finite" if None in found else f"{max(found):.0e}" if max(found) else "0")
    return ", ".join(errors)


def _claims(claims: Sequence[Claim], results: Mapping[str, Results]) -> str:
    lines = [[f"{c.text}: {_sides(c)}", *(_found(c, r) for r in results.values())] for c in claims]
    return _table(["claim", *results], lines)


def _found(claim: Claim, results: Results) -> str:
    spread, verdict = claim.found(results)
    if spread is None or spread.interval is None:
        return verdict
    low, high = spread.interval
    quiet = ("not seen", "no difference seen", "too few runs")
    marked = verdict if verdict in quiet else f"**{verdict}**"
    return f"{marked}: {spread.text(sign=True)} ({low:+.1f} to {high:+.1f}, n = {spread.count})"


def _sides(claim: Claim) -> str:
    names = [f"`{a}`" + (" at (1, 0)" if name != "score" else "") for a, name in (claim.first, claim.second)]
    expected = {"above": " > 0", "keeps": f" > {-MARGIN:g}", "either": ""}
    return " - ".join(names) + expected[claim.kind]
