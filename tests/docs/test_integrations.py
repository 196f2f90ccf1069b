"""Each example of docs/integrations.md converges as with stored activations, and resumes where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.docs.pages import ROOT, blocks, run_blocks

PAGE = ROOT / "docs" / "integrations.md"
SECTIONS = list(dict.fromkeys(block.section for block in blocks(PAGE, "python") if block.section))
STEPS = 8
MOVING = "dr2-balanced"

Weights = dict[str, torch.Tensor]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's command writes, without its checks."""
    folder = tmp_path_factory.mktemp("integrations")
    rs.convert("demo", output=folder / "demo-dr2", recipe=MOVING, verify=False)
    return folder


def test_the_page_begins_with_the_command_that_writes_what_its_examples_load() -> None:
    assert [block.commands for block in blocks(PAGE, "bash")] == [
        [f"revsurgeon convert demo --recipe {MOVING}"]
    ]


def weights_of(model: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run_section(section: str, folder: Path, converted: Path) -> tuple[list[Weights], dict[str, Any]]:
    """The weights at the end of each of a section's blocks, and its namespace."""
    shutil.copytree(converted, folder)
    ends, namespace = [], {}
    for block in blocks(PAGE, "python"):
        if block.section in ("", section):
            run_blocks([block], folder, namespace)
            if block.section == section:
                ends.append(weights_of(namespace["model"]))
    return ends, namespace


def stored(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Have what it makes backpropagate conventionally."""

    def made(*args: Any, **kwargs: Any) -> nn.Module:
        network = make(*args, **kwargs)
        for chain in rs.chains(network):
            chain.stored = True
        return network

    return made


def same(actual: Weights, expected: Weights) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[n], expected[n]) for n in expected)


IN_EVERY_RUN = ("Plain PyTorch", "accelerate")  # the others import much


@pytest.mark.parametrize(
    "section",
    [pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.slow) for name in SECTIONS],
)
def test_an_example_ends_where_stored_activations_end_and_where_it_ends_after_a_resume(
    section: str, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole, resumed, *_), namespace = run_section(section, tmp_path / "reversible", converted)
    model = namespace["model"]
    assert same(resumed, whole)
    assert {(chain.stored, chain.arithmetic) for chain in rs.chains(model)} == {(False, "exact")}
    assert rs.get_coefficients(model) == (0.3, 0.7)
    assert {chain.state["steps_done"] for chain in rs.chains(model)} == {STEPS}
    for name in ("load", "rewire"):
        monkeypatch.setattr(rs, name, stored(getattr(rs, name)))
    (conventional, *_), namespace = run_section(section, tmp_path / "stored", converted)
    assert {chain.stored for chain in rs.chains(namespace["model"])} == {True}
    assert same(whole, conventional)


def test_where_the_coefficients_stay_the_lines_with_a_schedule_may_be_left_out_or_in(tmp_path: Path) -> None:
    rs.convert("demo", output=tmp_path / "demo-dr2", verify=False)
    for folder in ("with", "without"):
        shutil.copytree(tmp_path / "demo-dr2", tmp_path / folder / "demo-dr2")
    wanted = [block for block in blocks(PAGE, "python") if block.section in ("", "Plain PyTorch")][:2]
    scheduled = run_blocks(wanted, tmp_path / "with")["model"]
    start = rs.get_coefficients(rs.load(tmp_path / "demo-dr2"))
    assert rs.get_coefficients(scheduled) == start
    assert rs.chains(scheduled)[0].state["steps_done"] == STEPS
    plain = [replace(block, code=without_schedule(block.code)) for block in wanted]
    unscheduled = run_blocks(plain, tmp_path / "without")["model"]
    assert rs.chains(unscheduled)[0].state is None
    assert same(weights_of(scheduled), weights_of(unscheduled))


def without_schedule(code: str) -> str:
    """The code of "Plain PyTorch" as it is for coefficients that stay."""
    lines = [line for line in code.splitlines(keepends=True) if not line.lstrip().startswith("schedule = ")]
    kept = "".join(line for line in lines if "schedule.step()" not in line)
    return kept.replace(', "schedule": schedule', "").replace(", schedule", "")


def test_every_integration_that_is_promised_has_an_example() -> None:
    assert SECTIONS == [
        "Plain PyTorch",
        "Hugging Face Trainer",
        "Lightning",
        "accelerate",
        "timm",
        "PEFT LoRA",
    ]
