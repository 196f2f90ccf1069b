"""`revsurgeon inspect`: the anatomy of a source, without its weights."""

from __future__ import annotations

import json


def test_the_demo_is_one_chain_of_twelve_segments(revsurgeon):
    result = revsurgeon("inspect", "demo")
    assert result.code == 0
    assert result.out.splitlines()[0].startswith("demo  12 segments in 1 chain, ")
    assert "blocks.1 to blocks.5  5 blocks like the one above" in result.out


def test_json_is_the_anatomy_and_where_it_comes_from(revsurgeon):
    document = json.loads(revsurgeon("inspect", "demo", "--json").out)
    (chain,) = document["chains"]
    assert [block["path"] for block in chain["blocks"]] == [f"blocks.{index}" for index in range(6)]
    assert document["device"] == "meta"
    assert document["source"]["kind"] == "demo"
    assert 0 < document["share"] < 1
    assert "code" not in chain["blocks"][0]["segments"][0]


def test_code_is_part_of_the_document_on_request(revsurgeon):
    (chain,) = json.loads(revsurgeon("inspect", "demo", "--json", "--code").out)["chains"]
    assert "self.attn(" in chain["blocks"][0]["segments"][0]["code"]


def test_code_is_printed_once_for_alike_segments(revsurgeon):
    text = revsurgeon("inspect", "demo", "--code").out
    assert text.count("self.attn(") == 1
    assert revsurgeon("inspect", "demo", "--code", "--all").out.count("self.attn(") == 6


def test_quiet_is_one_line(revsurgeon):
    result = revsurgeon("inspect", "demo", "--quiet")
    assert result.out.count("\n") == 1
    assert result.err == ""


def test_a_billion_parameters_need_no_memory(revsurgeon):
    document = json.loads(revsurgeon("inspect", "timm:vit_giant_patch14_dinov2", "--json").out)
    assert document["device"] == "meta"
    assert document["parameters"] > 1_000_000_000
    assert sum(len(block["segments"]) for block in document["chains"][0]["blocks"]) == 80


def test_a_network_without_chains_is_a_finding_not_an_error(revsurgeon):
    result = revsurgeon("inspect", "timm:vgg11")
    assert result.code == 0
    assert "nothing can be rewired" in result.out


def test_a_forward_that_needs_numbers_is_followed_with_random_weights(revsurgeon, tmp_path, monkeypatch):
    (tmp_path / "needs_numbers.py").write_text(
        """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
    def forward(self, x):
        return x + self.body(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
    def forward(self, x):
        if not bool(torch.isfinite(x).all()):
            raise ValueError("not finite")
        return self.blocks(x)

def build():
    return Net()
""",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = revsurgeon("inspect", "python:needs_numbers:build", "--input", "x=2x4", "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert [chain["name"] for chain in document["chains"]] == ["blocks"]


def test_the_next_command_repeats_the_options_that_were_needed(revsurgeon):
    result = revsurgeon("inspect", "timm:resnet10t", "--input", "x=1x3x64x64")
    last = result.out.splitlines()[-1]
    assert last == "Convert it: revsurgeon convert timm:resnet10t --input x=1x3x64x64 --mode dr2"
