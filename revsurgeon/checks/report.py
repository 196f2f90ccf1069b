"""What a verification found, as plain data: the report, its checks and their measurements.

The published JSON schema (docs/verify.schema.json) is made from these models.
"""

from __future__ import annotations

import math
import sys
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, computed_field

SCHEMA_VERSION: Literal[1] = 1

Verdict = Literal["passed", "failed", "skipped"]

_FROZEN = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no infinity; what overflowed, or is not a number, is as large as a float can say."""
    return value if not isinstance(value, float) or math.isfinite(value) else sys.float_info.max


Figure = Annotated[float, BeforeValidator(_finite)]


class Measurement(BaseModel):
    """One figure of a check, and the largest value that it may have."""

    model_config = _FROZEN

    what: str = Field(description="What was measured, and under which circumstances.")
    value: Figure = Field(description="Its value; smaller is better, 0 is equality.")
    threshold: Figure = Field(description="The largest value that passes.")
    place: str | None = Field(
        default=None,
        description="Where it was worst; if it failed, the first module, segment or tensor at which it goes "
        "wrong.",
    )
    detail: str | None = Field(default=None, description="More about it, in words.")
    by_segment: dict[str, Figure] = Field(default={}, description="The same figure for every segment.")

    @computed_field(description="Whether the value is within the threshold.")  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether the value is within the threshold."""
        return self.value <= self.threshold


class CheckResult(BaseModel):
    """The result of one check."""

    model_config = _FROZEN

    name: str
    verdict: Verdict
    value: Figure | None = Field(
        default=None, description="Of the first measurement that failed, else of the one nearest to failing."
    )
    threshold: Figure | None = Field(default=None, description="Of the same measurement.")
    place: str | None = Field(default=None, description="Of the same measurement.")
    reason: str | None = Field(default=None, description="Why it failed or was skipped.")
    hint: str | None = Field(default=None, description="What to do next.")
    seconds: float = Field(description="How long it took.")
    measurements: list[Measurement] = []
    notes: list[str] = Field(default=[], description="What was left out, and why.")


class Report(BaseModel):
    """The result of a verification; `passed` when no check failed and at least one passed."""

    model_config = _FROZEN

    schema_version: Literal[1] = SCHEMA_VERSION
    subject: str = Field(description="What was verified: a path, a Hub id, or the class of a network.")
    alpha: float | None = Field(default=None, description="The coefficients that it has now.")
    beta: float | None = None
    arithmetic: str | None = None
    device: str | None = None
    dtype: str | None = Field(default=None, description="The floating type of most of its weights.")
    extent: Literal["full", "partial", "quick", "by block"] = Field(
        default="full", description="Whether all checks were run; `by block` is --stream."
    )
    versions: dict[str, str] = Field(default={}, description="Of the software that took part.")
    seconds: float
    checks: list[CheckResult]

    @computed_field(description="Whether no check failed and at least one passed.")  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether no check failed and at least one passed."""
        verdicts = {check.verdict for check in self.checks}
        return "failed" not in verdicts and "passed" in verdicts

    def check(self, name: str) -> CheckResult:
        """The result of one check.

        Raises:
            KeyError: it is not in the report.
        """
        return {check.name: check for check in self.checks}[name]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types; docs/verify.schema.json describes it."""
        return self.model_dump(mode="json")


def result_of(
    name: str, measurements: list[Measurement], notes: list[str], seconds: float, error: str | None = None
) -> CheckResult:
    """A check's result from what it measured.

    Args:
        name: of the check.
        measurements: in order; the first one that failed is the one that is told.
        notes: what was left out.
        seconds: that it took.
        error: what ended it early.
    """
    failed = [m for m in measurements if not m.passed]
    if failed:
        told: Measurement | None = failed[0]
    else:
        told = max(measurements, key=_nearness, default=None)
    reason, place = error, told.place if told and told.value else None
    if failed:
        first = failed[0]
        reason = f"{first.what}: {first.detail}" if first.detail else first.what
        reason = f"{reason}; then: {error}" if error else reason
    verdict: Verdict = "failed" if failed or error else "passed"
    if not measurements and not error:
        verdict, reason = "skipped", "; ".join(notes) or "there was nothing to measure"
    return CheckResult(
        name=name,
        verdict=verdict,
        value=told.value if told else None,
        threshold=told.threshold if told else None,
        place=place,
        reason=reason,
        seconds=round(seconds, 3),
        measurements=measurements,
        notes=notes,
    )


def _nearness(measurement: Measurement) -> float:
    """How near to failing something is that passed."""
    return measurement.value / measurement.threshold if measurement.threshold else 0.0


def report_schema() -> dict[str, Any]:
    """The JSON schema of a report."""
    schema = Report.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
