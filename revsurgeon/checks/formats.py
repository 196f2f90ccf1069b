"""A report for other programs: JUnit XML for CI servers, Markdown for a pull-request comment."""

from __future__ import annotations

from xml.etree import ElementTree

from revsurgeon.checks.report import CheckResult, Report

_SIGNS = {"passed": "passed", "failed": "**failed**", "skipped": "skipped"}


def junit(report: Report) -> str:
    """One test suite with a test case for each check, as CI servers read it."""
    counted = [check.verdict for check in report.checks]
    suite = ElementTree.Element(
        "testsuite",
        name="revsurgeon verify",
        tests=str(len(counted)),
        failures=str(counted.count("failed")),
        skipped=str(counted.count("skipped")),
        errors="0",
        time=f"{report.seconds:.3f}",
    )
    for check in report.checks:
        case = ElementTree.SubElement(
            suite, "testcase", name=check.name, classname=_xml(report.subject), time=f"{check.seconds:.3f}"
        )
        if check.verdict == "failed":
            failure = ElementTree.SubElement(case, "failure", message=_xml(check.reason or "failed"))
            failure.text = _xml("\n".join(_lines(check)))
        elif check.verdict == "skipped":
            ElementTree.SubElement(case, "skipped", message=_xml(check.reason or ""))
        output = [f"{m.what}: {m.value:.3g}, at most {m.threshold:.3g}" for m in check.measurements]
        ElementTree.SubElement(case, "system-out").text = _xml("\n".join([*output, *check.notes]))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"
    )


def markdown(report: Report) -> str:
    """A table with a row for each check, and the details of those that failed."""
    verdict = "passed" if report.passed else "**failed**"
    at = "" if report.alpha is None else f" at (alpha, beta) = ({report.alpha:g}, {report.beta:g})"
    how = "" if report.arithmetic is None else f", {report.arithmetic} arithmetic"
    lines = [
        f"### revsurgeon verify: {verdict}",
        "",
        f"`{_cell(report.subject)}`{at}{how}. {_about(report)}",
        "",
        "| check | verdict | value | at most | where | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for check in report.checks:
        value = "" if check.value is None else f"{check.value:.2g}"
        limit = "" if check.threshold is None else f"{check.threshold:.2g}"
        where = check.reason if check.verdict == "skipped" else check.place
        told = (check.name, _SIGNS[check.verdict], value, limit, _cell(where or ""), f"{check.seconds:.1f}")
        lines.append("| " + " | ".join(told) + " |")
    for check in report.checks:
        if check.verdict == "failed":
            lines += ["", f"**{check.name}**", "", *(f"- {_cell(line)}" for line in _lines(check))]
    return "\n".join(lines) + "\n"


def _about(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    device = f", {report.dtype} on {report.device}" if report.device else ""
    return f"{versions}{device}, {report.seconds:.0f} s."


def _lines(check: CheckResult) -> list[str]:
    """What there is to say about a check that failed."""
    lines = [
        f"{m.what}: {m.value:.3g}, at most {m.threshold:.3g}"
        + (f", at {m.place}" if m.place else "")
        + (f" ({m.detail})" if m.detail else "")
        for m in check.measurements
        if not m.passed
    ]
    return [*lines, *check.notes, *([check.hint] if check.hint else [])]


def _xml(text: str) -> str:
    """Without the characters that XML does not have."""
    return "".join(c for c in text if c in "\t\n\r" or 0x20 <= ord(c) < 0xD800 or 0xE000 <= ord(c) <= 0xFFFD)


def _cell(text: str) -> str:
    """On one line, and without what would end a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")
