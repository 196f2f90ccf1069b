"""Checks: proof that a converted network is what its manifest says, and that its gradients are right.

One file a check, named like it, with three things: a first line that says what it proves; a function
``run(subject)`` that yields `Measurement`s (a value, the threshold that it must not exceed, and the place
where it was worst), texts for what it has to leave out, or raises `Skipped`; and ``CHECK = Check(run,
...)``, which says what it needs. To add a check, write that file and give it a line in `CHECKS` below, at
its place in the order. Where a threshold comes from is said in `thresholds.py`, never in a number at the
place of use.

The subject (`subject.py`) is the same for all: the rewired network, the unrewired one with the same
weights, and random inputs. Importing this package imports neither torch nor pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revsurgeon.checks.report import CheckResult, Measurement, Report, report_schema
    from revsurgeon.checks.verification import verify

CHECKS: dict[str, str] = {
    "integrity": "files, hashes and manifest agree, and the weights are numbers",
    "provenance": "every tensor is the source's",
    "equivalence": "at (1, 0) it is the unrewired network, bit for bit",
    "convergence": "as beta goes to 0 it becomes the pretrained network, with order 1",
    "equations": "every segment computes what the paper's equations say",
    "reversibility": "forward, then back, recovers what was there",
    "gradients": "reversible gradients are the stored ones, and both are right",
    "training": "three optimiser steps, reversible and stored, stay together",
}
"""The checks in their order, with what they prove."""


_HOME = {
    "CheckResult": "revsurgeon.checks.report",
    "Measurement": "revsurgeon.checks.report",
    "Report": "revsurgeon.checks.report",
    "report_schema": "revsurgeon.checks.report",
    "verify": "revsurgeon.checks.verification",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


__all__ = ["CHECKS", "CheckResult", "Measurement", "Report", "report_schema", "verify"]
