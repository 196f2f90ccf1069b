"""How a verification looks in the terminal: a row for each check, and more about those that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from revsurgeon.checks import CHECKS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from revsurgeon.checks import CheckResult, Report

_STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def summary(report: Report, width: int | None) -> list[RenderableType]:
    """Return the report for people.

    Args:
        report: to show.
        width: of the terminal; None where the result goes elsewhere.
    """
    from rich.text import Text

    verdict = "passed" if report.passed else "failed"
    headline = Text.assemble((report.subject, "bold"), "  ", (verdict, _STYLES[verdict]), _about(report))
    return [headline, table(report), *_failures(report), *_notes(report)]


def table(report: Report) -> RenderableType:
    """Return a row for each check: verdict, value, threshold, where it was worst."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("check", "verdict"):
        shown.add_column(title, no_wrap=True)
    for title in ("value", "at most"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("where it was worst, or what it proves", overflow="fold")
    shown.add_column("s", justify="right", no_wrap=True)
    for check in report.checks:
        place = check.reason if check.verdict == "skipped" else check.place
        shown.add_row(
            check.name,
            Text(check.verdict, style=_STYLES[check.verdict]),
            _figure(check.value),
            _figure(check.threshold),
            place or CHECKS[check.name],
            f"{check.seconds:.1f}",
        )
    return shown


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _about(report: Report) -> str:
    if report.alpha is None:
        return ""
    where = f", {report.dtype} on {report.device}" if report.device else ""
    return f"  alpha {report.alpha:g}, beta {report.beta:g}, {report.arithmetic} arithmetic{where}"


def _failures(report: Report) -> list[str]:
    lines = []
    for check in report.checks:
        if check.verdict == "failed":
            lines += ["", f"{check.name} failed: {check.reason}", *_measurements(check)]
            lines += [f"  {check.hint}"] if check.hint else []
    if not report.passed and not lines:
        lines += ["", "Nothing was checked."]
    return lines


def _measurements(check: CheckResult) -> list[str]:
    failed = [m for m in check.measurements if not m.passed]
    lines = []
    for found in failed[:5]:
        place = f", at {found.place}" if found.place else ""
        lines.append(f"  {found.what}: {found.value:.3g}, at most {found.threshold:.3g}{place}")
    return lines + ([f"  and {len(failed) - 5} more; see --json"] if len(failed) > 5 else [])


def _notes(report: Report) -> list[str]:
    notes = [f"Note, {check.name}: {note}" for check in report.checks for note in check.notes]
    return ["", *notes] if notes else []
