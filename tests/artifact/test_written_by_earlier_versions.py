"""Artifacts that released versions wrote still load and train; a folder each, and a release adds its own.

They are a tiny timm network with random weights: `sharded` as convert wrote it, `whole` saved after two steps
of its schedule.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch

import revsurgeon as rs
from revsurgeon.artifact import changed_tensors, read_manifest, read_tensors
from tests.gradients import assert_identical, step

FOLDER = Path(__file__).parent / "written_by"
ARTIFACTS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*"))
COEFFICIENTS = {"sharded": (0.9, 0.1), "whole": (0.78, 0.22)}


def test_there_is_one_of_this_version() -> None:
    assert f"{importlib.metadata.version('revsurgeon')}/whole" in ARTIFACTS


@pytest.mark.parametrize("name", ARTIFACTS)
def test_what_an_earlier_version_wrote_loads_and_trains(name: str) -> None:
    path = FOLDER / name
    manifest = read_manifest(path)
    assert manifest.revsurgeon == name.partition("/")[0]
    assert changed_tensors(read_tensors(path, manifest), manifest) == []
    network = rs.load(path).train()
    assert rs.get_coefficients(network) == pytest.approx(COEFFICIENTS[name.rpartition("/")[2]])
    (chain,) = rs.chains(network)
    assert (chain.arithmetic, sum(chain.segments)) == ("exact", 4)
    images = (torch.randn(2, 1, 8, 8),)
    reversible, stored = step(network, images), step(network, images, inside=rs.stored_activations(network))
    assert_identical(reversible, stored)
    assert rs.CoefficientSchedule.from_manifest(network, total_steps=10)
