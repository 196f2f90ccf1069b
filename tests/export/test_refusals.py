"""What goes wrong is said, with exit code 2 or 3, and leaves nothing behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from revsurgeon.exporting import formats, onnx_program, publish
from tests.cli.conftest import Run, revsurgeon
from tests.composition.agreement import rewired_from, stack
from tests.models import Residual

__all__ = ["revsurgeon"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    return rs.convert("demo", output=folder / "demo-dr2", verify=False)


def test_the_demo_is_exported_to_a_file_named_after_it(
    revsurgeon: Run, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = revsurgeon("export", str(artifact), "--quiet")
    assert (done.code, done.out) == (0, "demo-dr2.pt2\n")
    network = rs.load(artifact)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(torch.export.load("demo-dr2.pt2").module()(x), network(x))
    again = revsurgeon("export", str(artifact))
    assert again.code == 2
    assert "already there" in again.err
    forced = revsurgeon("export", str(artifact), "--force", "--alpha", "1", "--beta", "0")
    assert forced.code == 0
    assert "(1, 0)" in forced.out
    assert os.listdir(tmp_path) == ["demo-dr2.pt2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "tflite"], "is not one of"),
        (["--output", "no/such/directory/a.pt2"], "directory is not there"),
        (["--to", "onnx", "--output", "a.pt2"], "must end in .onnx"),
        (["--to", "weights", "--beta", "0.5"], "weights have no coefficients"),
        (["--beta", "2"], "Invalid value for '--beta'"),
        (["--beta", "1e-9"], "out of range"),
        (["--input", "y=2x1x8x8"], "takes no input 'y'"),
    ],
)
def test_an_option_that_makes_no_sense_is_bad_usage(
    revsurgeon: Run,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = revsurgeon("export", str(artifact), *arguments)
    assert done.code == 2, done.err
    assert said in done.err
    assert os.listdir(tmp_path) == []


def test_a_network_that_is_not_there_is_bad_usage(
    revsurgeon: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = revsurgeon("export", "./no-such-directory")
    assert done.code == 2
    assert "There is no such artifact" in done.err


def test_packages_that_are_missing_are_named(
    revsurgeon: Run, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx_program, "PACKAGES", ("onnx", "a_package_that_nobody_has"))
    done = revsurgeon("export", str(artifact), "--to", "onnx")
    assert done.code == 2
    assert "needs a_package_that_nobody_has" in done.err
    assert 'pip install "revsurgeon[export]"' in done.err
    assert os.listdir(tmp_path) == []


def test_the_artifact_itself_is_never_the_output(revsurgeon: Run, artifact: Path) -> None:
    weights = artifact / "model.safetensors"
    before = weights.read_bytes()
    for output in (weights, artifact / "plain.safetensors"):
        done = revsurgeon("export", str(artifact), "--to", "weights", "--force", "--output", str(output))
        assert done.code == 2
    done = revsurgeon("export", str(weights), "--to", "weights", "--force", "--output", str(weights))
    assert done.code == 2
    assert weights.read_bytes() == before


WRONG: dict[str, Callable[[list[torch.Tensor]], list[torch.Tensor]]] = {
    "off by a thousandth": lambda tensors: [1.001 * tensor for tensor in tensors],
    "not a number": lambda tensors: [tensor * torch.nan for tensor in tensors],
    "of another dtype": lambda tensors: [tensor.double() for tensor in tensors],
    "of another shape": lambda tensors: [tensor[None] for tensor in tensors],
    "one too few": lambda tensors: [],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_program_that_computes_something_else_is_not_written(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, inputs = stack("exact")
    right = formats.PROGRAMS["torch-export"]

    def opened(path: Path) -> Callable[[Any], list[torch.Tensor]]:
        run = right.opened(path)
        return lambda arguments: WRONG[wrong](run(arguments))

    monkeypatch.setitem(formats.PROGRAMS, "torch-export", formats.Format(right.write, opened))
    with pytest.raises(rs.VerificationError, match="computes something else"):
        rs.export(network, output=tmp_path / "a.pt2", example_inputs=inputs)
    assert os.listdir(tmp_path) == []


def test_what_was_there_stays_when_the_new_one_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, inputs = stack("exact")
    (tmp_path / "a.pt2").write_text("what was there")
    right = formats.PROGRAMS["torch-export"]
    monkeypatch.setitem(
        formats.PROGRAMS, "torch-export", formats.Format(right.write, lambda path: lambda arguments: [])
    )
    with pytest.raises(rs.VerificationError):
        rs.export(network, output=tmp_path / "a.pt2", example_inputs=inputs, force=True)
    assert os.listdir(tmp_path) == ["a.pt2"]
    assert (tmp_path / "a.pt2").read_text() == "what was there"


def test_a_run_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> None:
        with publish.published(tmp_path / "a.pt2", force=False) as stage:
            (stage / "a.pt2").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert os.listdir(tmp_path) == []


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def overtaken() -> None:
        with publish.published(tmp_path / "a", force=False) as stage:
            (stage / "a").write_text("ours")
            (tmp_path / "a").write_text("theirs")

    with pytest.raises(rs.UsageError, match="appeared"):
        overtaken()
    assert (tmp_path / "a").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["a"]


def test_files_may_be_read_by_whom_new_files_may_be_read_by(tmp_path: Path) -> None:
    network, inputs = stack("exact")
    (tmp_path / "new").touch()
    made = rs.export(network, "weights", output=tmp_path / "a.safetensors", example_inputs=inputs)
    assert stat.S_IMODE(made.path.stat().st_mode) == stat.S_IMODE((tmp_path / "new").stat().st_mode)


class Deciding(nn.Module):
    """What it does depends on the numbers that come out of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Residual(), Residual())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x)
        return x if float(x.sum()) > 0 else -x


def test_a_network_that_torch_export_cannot_follow_is_refused_with_its_reason(tmp_path: Path) -> None:
    network, inputs = rewired_from(Deciding, "exact")
    with pytest.raises(rs.UsageError, match=r"torch\.export cannot follow Deciding") as caught:
        rs.export(network, output=tmp_path / "a.pt2", example_inputs=inputs)
    assert caught.value.where
    assert os.listdir(tmp_path) == []


def test_a_network_whose_inputs_are_not_known_asks_for_them() -> None:
    network, _ = stack("exact")
    with pytest.raises(rs.UsageError, match="not known how the network is called"):
        rs.export(network)


def test_a_network_that_was_not_rewired_is_refused() -> None:
    with pytest.raises(rs.UnsupportedModelError, match="was not rewired"):
        rs.export(nn.Linear(2, 2), example_inputs=torch.randn(3, 2))
