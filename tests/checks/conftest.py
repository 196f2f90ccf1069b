"""Artifacts to verify, converted once; every test that changes one gets a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import revsurgeon as rs
from revsurgeon.recipes import Recipe
from tests.checks.networks import tower
from tests.models import seeded

RECIPE = Recipe.model_validate(
    {
        "name": "test",
        "mode": "dr2",
        "arithmetic": "exact",
        "start": {"alpha": 0.9, "beta": 0.1},
        "end": {"alpha": 0.3, "beta": 0.7},
    }
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tower as an artifact, in exact arithmetic."""
    target = tmp_path_factory.mktemp("artifacts") / "tower"
    return rs.convert("python:tests.checks.networks:tower", recipe=RECIPE, output=target)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in several files."""
    target = tmp_path_factory.mktemp("artifacts") / "shards"
    return rs.convert(
        "python:tests.checks.networks:tower", recipe=RECIPE, output=target, max_shard_size="2KB", verify=False
    )


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as an artifact."""
    return rs.convert("demo", recipe=RECIPE, output=tmp_path_factory.mktemp("artifacts") / "demo-dr2")


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Gives a copy of an artifact under the same name."""
    return lambda path: Path(shutil.copytree(path, tmp_path / path.name))


@pytest.fixture
def network() -> torch.nn.Module:
    """The tower, rewired in memory, in exact arithmetic."""
    made, inputs = seeded(tower)
    return rs.rewire(made, example_inputs=inputs, recipe=RECIPE)
