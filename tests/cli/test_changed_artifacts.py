"""The pre-commit hook verifies the artifacts that changed files belong to, each once, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import revsurgeon as rs
from revsurgeon.cli.changed_artifacts import DEFAULTS, artifacts_of, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rs.convert("demo", output=tmp_path_factory.mktemp("hook") / "demo-dr2", verify=False)


def test_files_lead_to_their_artifacts_and_foreign_ones_nowhere(converted: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(converted, tmp_path / "whole"))
    alone = tmp_path / "alone.safetensors"
    shutil.copy(whole / "model.safetensors", alone)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "manifest.yaml").write_text("kind: Deployment\n")
    names = [whole / "manifest.yaml", whole / "model.safetensors", alone]
    names += [tmp_path / "foreign.safetensors", tmp_path / "manifest.yaml"]
    assert artifacts_of([str(name) for name in names]) == [whole, alone]


def test_the_exit_code_is_the_worst_one(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = Path(shutil.copytree(converted, tmp_path / "sound"))
    broken = Path(shutil.copytree(converted, tmp_path / "broken"))
    with (broken / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    only = ["--only", "integrity", "--quiet"]
    assert main([*only, str(sound / "model.safetensors")]) == 0
    assert main([*only, str(broken / "manifest.yaml"), str(sound / "manifest.yaml")]) == 3
    assert capsys.readouterr().out.split() == ["passed", "failed", "passed"]
    assert main([*only, str(ROOT / "pyproject.toml")]) == 0


def test_the_published_hook_calls_it(converted: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"].split() == ["python", "-m", "revsurgeon.cli.changed_artifacts"]
    import re

    for name in ("manifest.yaml", "out/model.safetensors", "out/model.safetensors.index.json"):
        assert re.search(hook["files"], name)
    assert not re.search(hook["files"], "out/config.json")
    assert "--offline" in DEFAULTS
