"""An untouched artifact passes: on every network of the conversion tests, in float32 and bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

import revsurgeon as rs
from revsurgeon.checks import CHECKS
from tests.models import NETWORKS

EVERY_TIME = ("torchvision vit", None)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name,
            dtype,
            id=f"{name}, {dtype or 'float32'}",
            marks=() if (name, dtype) == EVERY_TIME else pytest.mark.slow,
        )
        for name in NETWORKS
        for dtype in (None, "bfloat16")
    ],
)
def test_an_untouched_artifact_passes_every_check(tmp_path: Path, name: str, dtype: str | None) -> None:
    spec = f"python:tests.models:{NETWORKS[name].__name__}"
    path = rs.convert(spec, output=tmp_path / "out", dtype=dtype)
    report = rs.verify(path, allow_python=True, device="cpu")
    assert {check.name: check.verdict for check in report.checks} == dict.fromkeys(CHECKS, "passed"), report
    assert report.passed


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("granularity", ["segment", "block"])
@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("name", ["timm vit", "timm resnet", "transformers bert"])
def test_both_arithmetics_and_granularities_pass(
    tmp_path: Path, name: str, arithmetic: str, granularity: str
) -> None:
    """At (.5, .5), where float arithmetic is good enough for short chains."""
    spec = f"python:tests.models:{NETWORKS[name].__name__}"
    options = {"arithmetic": arithmetic, "granularity": granularity, "start": (0.5, 0.5)}
    path = rs.convert(spec, output=tmp_path / "out", **options)
    report = rs.verify(path, allow_python=True, device="cpu", seeds=1)
    assert {check.name for check in report.checks if check.verdict != "passed"} == set(), report
