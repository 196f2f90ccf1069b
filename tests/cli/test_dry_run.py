"""`convert --dry-run`: what would be written is told without weights, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from revsurgeon.memory import allocator

from .conftest import Run


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Decides(nn.Module):
    """A network whose forward looks at a value that comes from its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x if x.sum() > 0 else -x


def test_what_is_told_is_what_a_conversion_writes(revsurgeon: Run) -> None:
    result = revsurgeon("convert", "demo", "--dry-run", "--json")
    assert result.code == 0, result.err
    assert list(Path.cwd().iterdir()) == []
    told = json.loads(result.out)
    assert revsurgeon("convert", told["output"].removesuffix("-dr2"), "--mode", "dr2").code == 0
    tensors = load_file(Path(told["output"]) / "model.safetensors")
    assert told["tensors"] == len(tensors)
    assert told["bytes"] == sum(t.numel() * t.element_size() for t in tensors.values())
    manifest = json.loads(revsurgeon("inspect", "demo", "--json").out)
    assert told["chains"] == manifest["chains"]


def test_people_are_told_and_an_output_that_is_there_is_refused_as_it_would_be(revsurgeon: Run) -> None:
    result = revsurgeon("convert", "demo", "--dry-run")
    assert result.code == 0
    assert "Would write demo-dr2" in result.out
    Path("demo-dr2").mkdir()
    (Path("demo-dr2") / "mine").touch()
    refused = revsurgeon("convert", "demo", "--dry-run")
    assert refused.code == 2
    assert "demo-dr2" in refused.err


def test_options_change_what_is_told(revsurgeon: Run) -> None:
    whole = json.loads(revsurgeon("convert", "demo", "--dry-run", "--json").out)
    half = json.loads(
        revsurgeon("convert", "demo", "--dry-run", "--json", "--dtype", "bfloat16", "-o", "x").out
    )
    assert half["output"] == "x"
    assert half["bytes"] < 0.6 * whole["bytes"]
    few = revsurgeon("convert", "demo", "--dry-run", "--include", "nothing.*")
    assert few.code == 4


def test_a_decoder_that_looks_at_its_mask_is_followed_without_its_weights(revsurgeon: Run) -> None:
    """As many weights as no machine has: 70 billion."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 229376,
        "num_hidden_layers": 12,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "use_cache": False,
    }
    Path("config.json").write_text(json.dumps(config), encoding="utf-8")
    result = revsurgeon("convert", ".", "--dry-run", "--json", "--output", "out")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert [len(block["segments"]) for block in told["chains"][0]["blocks"]] == [2] * 12
    assert told["bytes"] > 2**37


def test_weights_that_do_not_fit_are_not_drawn(revsurgeon: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("inspect", f"python:{__name__}:Decides", "--input", "0=2x8")
    assert revsurgeon(*arguments).code == 0
    monkeypatch.setattr(allocator, "available", lambda device: 100)
    refused = revsurgeon(*arguments)
    assert refused.code == 4
    assert "no memory for its weights" in refused.err
