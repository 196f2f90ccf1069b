"""The quick part of a verification, which a conversion runs before it writes anything."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

from revsurgeon.checks.from_network import network_subject
from revsurgeon.checks.report import CheckResult, Report
from revsurgeon.checks.subject import Options
from revsurgeon.checks.verification import checks_of, made_report, result_of_check
from revsurgeon.errors import VerificationError
from revsurgeon.recipes import Recipe
from revsurgeon.reversible.coefficients import some_chains


def check_before_writing(network: nn.Module, examples: Any, recipe: Recipe) -> dict[str, Any]:
    """Run the checks that are quick, at the start point, on one input.

    Where the recipe leaves the arithmetic open, float was taken for the gradient as a whole. If it does not
    recover the input of every segment, the chains are set to exact here.

    Args:
        network: freshly rewired, in memory.
        examples: that it was rewired with.
        recipe: of the conversion.

    Returns:
        What the manifest records: no figures that another machine would not repeat.

    Raises:
        VerificationError: one of them fails.
    """
    chains = some_chains(network)
    try:
        return _record(network, examples, recipe)
    except VerificationError:
        if recipe.arithmetic != "auto" or any(chain.arithmetic == "exact" for chain in chains):
            raise
    for chain in chains:
        chain.arithmetic = "exact"
    return _record(network, examples, recipe)


def _record(network: nn.Module, examples: Any, recipe: Recipe) -> dict[str, Any]:
    began = time.monotonic()
    options = Options().completed(recipe.checks, rtol=None, seeds=1)
    subject = network_subject(network, options, example_inputs=examples)
    subject.quick = True
    results: list[CheckResult] = []
    for name, check in checks_of(None):
        if check.quick and name not in options.skip:
            results.append(result_of_check(name, check, subject, results))
    report = made_report(subject, results, began)
    raise_if_failed(report)
    return {
        "passed": True,
        "extent": report.extent,
        "checks": {result.name: result.verdict for result in results},
    }


def raise_if_failed(report: Report) -> None:
    """Refuse to go on with a network that did not pass.

    Raises:
        VerificationError: naming what failed, and where.
    """
    failed = [check for check in report.checks if check.verdict == "failed"]
    if failed:
        raise VerificationError(
            "the rewired network does not pass its checks, so it is not written.",
            where="\n".join(f"{check.name}: {check.reason} ({check.place})" for check in failed),
            hint=failed[0].hint,
        )
