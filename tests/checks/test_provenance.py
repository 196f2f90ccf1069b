"""The source is found where it can be, and where it cannot the report says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import revsurgeon as rs
from revsurgeon.artifact import read_manifest
from tests.checks.tampering import tamper
from tests.hub_server import HubServer
from tests.sources.conftest import hub, offline, videomae

__all__ = ["hub", "offline", "videomae"]

NAME = "someone/videomae-small"


def provenance(path: Path, **options: Any) -> Any:
    return rs.verify(path, only=["provenance"], **options).check("provenance")


@pytest.fixture
def converted(hub: HubServer, videomae: Path, tmp_path: Path) -> Path:
    hub.add(NAME, videomae)
    return rs.convert(NAME, output=tmp_path / "out", arithmetic="exact", verify=False)


def test_weights_of_the_hub_are_compared_at_the_commit_that_was_converted(
    converted: Path, hub: HubServer, videomae: Path, tmp_path: Path
) -> None:
    assert provenance(converted).verdict == "passed"
    newer = {path.name: path.read_bytes() for path in videomae.iterdir()}
    hub.add(NAME, {**newer, "model.safetensors": newer["model.safetensors"][:-4] + b"\0\0\0\1"})
    assert provenance(converted, cache_dir=tmp_path / "another cache").verdict == "passed"
    # What a library renames on loading cannot be followed tensor by tensor; it depends on its version.
    with safe_open(str(videomae / "model.safetensors"), framework="pt") as file:
        renamed = not read_manifest(converted).tensors.keys() <= set(file.keys())
    streamed = provenance(converted, stream=True)
    assert streamed.verdict == ("skipped" if renamed else "passed")
    assert not renamed or "other names" in streamed.reason


def test_a_source_that_is_out_of_reach_is_no_failure(
    converted: Path, hub: HubServer, tmp_path: Path, offline: Callable[[], None]
) -> None:
    del hub.repositories[NAME]
    result = provenance(converted, cache_dir=tmp_path / "another cache")
    assert result.verdict == "skipped"
    assert "cannot be had" in result.reason
    offline()
    assert provenance(converted, cache_dir=tmp_path / "a third cache").verdict == "skipped"


def test_a_converted_network_is_verified_from_the_hub(
    converted: Path, hub: HubServer, tmp_path: Path
) -> None:
    hub.add("someone/converted", converted)
    report = rs.verify("someone/converted", only=["integrity", "equations"])
    assert report.passed
    assert report.subject == "someone/converted"
    with pytest.raises(rs.HubError):
        rs.verify("someone/nothing")


def test_finetuned_weights_are_not_held_against_their_source(converted: Path, tmp_path: Path) -> None:
    model = rs.load(converted)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    result = provenance(rs.save(model, tmp_path / "finetuned"))
    assert result.verdict == "skipped"
    assert "finetuned" in result.reason


def test_weights_that_were_cast_are_compared_after_the_cast(demo: Path, tmp_path: Path) -> None:
    path = rs.convert("demo", output=tmp_path / "half", dtype="bfloat16", arithmetic="exact", verify=False)
    assert provenance(path).verdict == "passed"
    assert provenance(path, stream=True).verdict == "passed"

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["head.weight"][0, 0] *= 1.01

    tamper(path, tensors=nudge)
    for stream in (False, True):
        result = provenance(path, stream=stream)
        assert (result.verdict, result.place) == ("failed", "head.weight")


def test_random_weights_are_drawn_again(tmp_path: Path) -> None:
    options: dict[str, Any] = {"random_weights": True, "arithmetic": "exact", "verify": False}
    path = rs.convert("timm:resnet10t", output=tmp_path / "random", inputs=["x=2x3x32x32"], **options)
    assert provenance(path).verdict == "passed"

    def another_torch(data: dict[str, Any]) -> None:
        data["source"]["libraries"]["torch"] = "1.0"

    tamper(path, manifest=another_torch)
    assert "another version of torch" in provenance(path).reason


def test_code_is_not_run_for_it_without_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.checks import networks

    path = rs.convert("python:tests.checks.networks:tower", output=tmp_path / "tower", verify=False)
    calls: list[int] = []
    made = networks.tower
    monkeypatch.setattr(networks, "tower", lambda: calls.append(1) or made())
    with pytest.raises(rs.SourceError, match="Python code"):
        rs.verify(path)
    assert calls == []
    assert provenance(path, allow_python=True).verdict == "passed"
