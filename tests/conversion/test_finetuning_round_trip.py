"""From the demo over an artifact to a finetuned one: what the README shows, and what must survive it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.artifact.processes import contents
from tests.models import residual_stack, seeded

from .conftest import Run

FOUND = (0.95, 0.05)  # of the ladder, the first whose drift is below 5 %
START = {"dr2": FOUND, "dr2-balanced": FOUND, "re2": (0.0, 1.0)}
"""By mode or recipe."""


@pytest.fixture(scope="module", params=["dr2-balanced", "re2"])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A recipe, and the demo converted by it."""
    output = tmp_path_factory.mktemp("demo") / f"demo-{request.param}"
    return request.param, rs.convert("demo", recipe=request.param, output=output)


def finetune(model: nn.Module, schedule: rs.CoefficientSchedule, steps: int) -> None:
    """A few reversible training steps on random images."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        images = torch.randn(4, 1, 8, 8, generator=generator)
        labels = torch.randint(0, 10, (4,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
    model.eval()


@pytest.mark.parametrize("mode", ["dr2", "re2"])
def test_the_command_line_records_the_modes_start_point(revsurgeon: Run, mode: str) -> None:
    result = revsurgeon("convert", "demo", "--mode", mode, "--json")
    manifest = json.loads(result.out)["manifest"]
    assert (result.code, manifest["recipe"]["mode"]) == (0, mode)
    assert tuple(manifest["coefficients"].values()) == START[mode]
    assert rs.get_coefficients(rs.load(f"demo-{mode}")) == START[mode]


def test_what_loads_is_the_librarys_own_class_at_the_recorded_coefficients(demo: tuple[str, Path]) -> None:
    from timm.models import VisionTransformer

    recipe, path = demo
    model = rs.load(path)
    assert type(model) is VisionTransformer
    assert {type(block).__module__ for block in model.blocks} == {"timm.models.vision_transformer"}
    assert not any(module.training for module in model.modules())
    assert [(chain.alpha, chain.beta) for chain in rs.chains(model)] == [START[recipe]]


def test_a_finetuned_network_is_saved_with_its_weights_coefficients_and_schedule(
    demo: tuple[str, Path], tmp_path: Path
) -> None:
    recipe, path = demo
    original = rs.load(path)
    model = rs.load(path)
    schedule = rs.CoefficientSchedule.from_manifest(model, total_steps=10)
    finetune(model, schedule, 3)
    before = rs.load(path).state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(map(torch.equal, original.state_dict().values(), before.values())), (
        "the artifact was written to"
    )

    again = rs.load(rs.save(model, tmp_path / "finetuned"))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert rs.get_coefficients(again) == rs.get_coefficients(model) == schedule.coefficients_at(3)
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
    assert (rs.get_coefficients(again) == START[recipe]) == (recipe == "re2")


def test_a_saved_schedule_resumes_where_it_stood(demo: tuple[str, Path], tmp_path: Path) -> None:
    _, path = demo
    without_break, interrupted = rs.load(path), rs.load(path)
    whole = rs.CoefficientSchedule.from_manifest(without_break, total_steps=6)
    first_half = rs.CoefficientSchedule.from_manifest(interrupted, total_steps=6)
    for _ in range(2):
        first_half.step()
    resumed = rs.load(rs.save(interrupted, tmp_path / "half"))
    second_half = rs.CoefficientSchedule.from_manifest(resumed, total_steps=6)
    assert second_half.steps_done == 2
    for _ in range(2):
        whole.step()
    for _ in range(4):
        assert rs.get_coefficients(resumed) == rs.get_coefficients(without_break)
        second_half.step()
        whole.step()
    assert rs.get_coefficients(resumed) == whole.end


def test_a_loaded_network_that_was_not_changed_saves_the_same_files(
    demo: tuple[str, Path], tmp_path: Path
) -> None:
    _, path = demo
    again = rs.save(rs.load(path), tmp_path / path.name)
    assert contents(again) == contents(path)


def test_saving_over_an_artifact_needs_force(demo: tuple[str, Path], tmp_path: Path) -> None:
    model = rs.load(demo[1])
    first = rs.save(model, tmp_path / "out")
    before = contents(first)
    rs.set_coefficients(model, 0.5, 0.5)
    with pytest.raises(rs.ArtifactError, match="already there"):
        rs.save(model, tmp_path / "out")
    assert contents(first) == before
    assert rs.get_coefficients(rs.load(rs.save(model, tmp_path / "out", force=True))) == (0.5, 0.5)


def test_a_network_loads_over_the_file_that_it_was_mapped_from(
    demo: tuple[str, Path], tmp_path: Path
) -> None:
    """The weights of a loaded network are pages of the very files that `force` replaces."""
    path = rs.save(rs.load(demo[1]), tmp_path / "out")
    model = rs.load(path)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rs.save(model, path, force=True)
    for state in (model.state_dict(), rs.load(path).state_dict()):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


@pytest.mark.parametrize("mode", ["dr2", "re2"])
def test_a_network_of_ones_own_is_saved_and_loads_into_another_of_its_kind(tmp_path: Path, mode: str) -> None:
    network, inputs = seeded(residual_stack)
    rs.rewire(network, mode, example_inputs=inputs)
    schedule = rs.CoefficientSchedule.from_manifest(network, total_steps=10)
    for _ in range(4):
        schedule.step()
    path = rs.save(network.eval(), tmp_path / "mine")
    with pytest.raises(rs.ArtifactError, match="does not say how to build its network") as raised:
        rs.load(path)
    assert "into=network" in (raised.value.hint or "")
    other, _ = residual_stack()
    loaded = rs.load(path, into=other)
    assert loaded is other
    assert rs.get_coefficients(loaded) == rs.get_coefficients(network)
    assert rs.CoefficientSchedule.from_manifest(loaded, total_steps=10).steps_done == 4
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), network(*inputs))


def test_weights_that_do_not_fit_leave_the_given_network_as_it_was(tmp_path: Path) -> None:
    network, inputs = seeded(residual_stack)
    path = rs.save(rs.rewire(network, example_inputs=inputs), tmp_path / "mine")
    other, _ = residual_stack()
    other.head = nn.Linear(8, 3)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(rs.ArtifactError, match="do not fit Stack") as raised:
        rs.load(path, into=other)
    assert "head.weight" in (raised.value.where or "")
    assert rs.chains(other) == []
    assert other(*inputs).shape == (3, 5, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_network_with_other_blocks_is_refused(tmp_path: Path) -> None:
    network, inputs = seeded(residual_stack)
    path = rs.save(rs.rewire(network, example_inputs=inputs), tmp_path / "mine")
    shorter, _ = residual_stack(depth=2)
    with pytest.raises(rs.RevsurgeonError, match=r"has no module 'blocks\.2'"):
        rs.load(path, into=shorter)
    assert rs.chains(shorter) == []


def test_a_network_that_was_not_rewired_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(rs.UnsupportedModelError, match="was not rewired"):
        rs.save(residual_stack()[0], tmp_path / "plain")
    assert list(tmp_path.iterdir()) == []
