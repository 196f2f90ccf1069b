"""An exported program gives what the network gives, for batches of any size, without the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import revsurgeon as rs
from revsurgeon.exporting import Export, difference
from revsurgeon.rewiring.measure import Arguments, called, tensors_of
from tests.composition.agreement import COEFFICIENTS, both_arithmetics, rewired, rewired_from, stack

slow = pytest.mark.slow
FORMATS = {"torch-export": "network.pt2", "onnx": "network.onnx"}
SIZES = (1, 2, 5)

both_formats = pytest.mark.parametrize("to", FORMATS)


def arguments_of(inputs: Any, batch: int) -> Arguments:
    """The example inputs, repeated up to a batch size."""
    sized = pytree.tree_map(lambda t: torch.cat([t] * batch)[:batch], inputs)
    return (sized, {}) if isinstance(sized, tuple) else ((), sized)


def outputs(network: nn.Module, arguments: Arguments) -> list[torch.Tensor]:
    network.eval()
    with torch.no_grad():
        return tensors_of(called(network, arguments))


def run(path: Path, arguments: Arguments) -> list[torch.Tensor]:
    """What a file computes, read as its users read it."""
    if path.suffix == ".pt2":
        with torch.no_grad():
            return tensors_of(called(torch.export.load(path).module(), arguments))
    session = onnxruntime.InferenceSession(path)
    arrays = [tensor.numpy() for tensor in tensors_of(arguments)]
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, dict(zip(names, arrays, strict=True)))
    return [torch.from_numpy(array) for array in found]


def check(network: nn.Module, inputs: Any, to: str, folder: Path) -> Export:
    """Export, and compare what is in the file at several sizes of the batch."""
    made = rs.export(network, to, output=folder / FORMATS[to], example_inputs=inputs)
    assert made.batch == "any"
    assert made.difference <= made.tolerance
    for batch in SIZES:
        given = arguments_of(inputs, batch)
        actual, expected = run(made.path, given), outputs(network, given)
        if made.difference == 0:
            assert all(map(torch.equal, actual, expected))
        # The tolerance is one of rounding: a thousandth of what is left if a coefficient is off by a tenth.
        assert difference.difference(actual, expected) <= made.tolerance < 1e-3
    return made


@pytest.mark.parametrize(
    ("name", "to"),
    [
        pytest.param("timm vit", "onnx", marks=slow),
        pytest.param("timm vit", "torch-export", marks=slow),
        pytest.param("timm swin", "torch-export", marks=slow),
        pytest.param("timm swin", "onnx", marks=slow),
        pytest.param("torchvision swin3d", "torch-export", marks=slow),
        pytest.param("torchvision swin3d", "onnx", marks=slow),
        pytest.param("transformers videomae", "torch-export", marks=slow),
        pytest.param("transformers videomae", "onnx", marks=slow),
        pytest.param("transformers vit", "torch-export", marks=slow),
        pytest.param("transformers bert", "onnx", marks=slow),
        pytest.param("timm resnet", "onnx", marks=slow),
        pytest.param("timm convnext", "onnx", marks=slow),
    ],
)
def test_a_program_gives_the_outputs_of_the_network_in_exact_arithmetic(
    name: str, to: str, tmp_path: Path
) -> None:
    network, inputs = rewired(name, "exact")
    check(network, inputs, to, tmp_path)


@slow
@both_formats
@pytest.mark.parametrize("name", ["timm vit", "timm swin", "transformers videomae"])
def test_a_program_gives_the_outputs_of_the_network_in_float_arithmetic(
    name: str, to: str, tmp_path: Path
) -> None:
    network, inputs = rewired(name, "float")
    check(network, inputs, to, tmp_path)


@both_arithmetics
def test_a_program_of_torch_export_has_every_bit_of_the_network(arithmetic: str, tmp_path: Path) -> None:
    network, inputs = stack(arithmetic)
    assert check(network, inputs, "torch-export", tmp_path).difference == 0


def test_the_rounding_to_the_grid_is_in_the_program(tmp_path: Path) -> None:
    """Otherwise it would give what float arithmetic gives, which is something else here."""
    network, inputs = stack("exact")
    for chain in rs.chains(network):
        chain.grid_bits = 6  # coarse, so that it shows
    exact = outputs(network, (inputs, {}))[0]
    made = check(network, inputs, "onnx", tmp_path)
    assert made.arithmetic == "exact"
    operations = {node.op_type for node in onnx.load(made.path).graph.node}
    assert {"Round", "Floor"} <= operations
    floating = rs.export(
        network, "onnx", output=tmp_path / "float.onnx", example_inputs=inputs, arithmetic="float"
    )
    assert floating.arithmetic == "float"
    assert not {"Round", "Floor"} & {node.op_type for node in onnx.load(floating.path).graph.node}
    (found,) = run(floating.path, (inputs, {}))
    assert difference.difference([found], [exact]) > 100 * floating.tolerance


def test_a_float_program_of_an_exact_network_differs_by_rounding_alone(tmp_path: Path) -> None:
    """It has the beta that exact arithmetic applies, a multiple of 2**-16, which .05 is not."""
    network, inputs = stack("exact")
    rs.set_coefficients(network, 0.95, 0.05)
    made = rs.export(network, output=tmp_path / "a.pt2", example_inputs=inputs, arithmetic="float")
    assert made.beta == 3277 / 2**16
    found, exact = run(made.path, (inputs, {})), outputs(network, (inputs, {}))
    # Up to 64 times the largest magnitude seen fits the grid, which so is finer than float32 resolves.
    assert 0 < difference.difference(found, exact) <= made.tolerance


def test_coefficients_can_be_chosen_and_the_network_keeps_its_own(tmp_path: Path) -> None:
    network, inputs = stack("exact")
    network.train()
    made = rs.export(network, output=tmp_path / "a.pt2", example_inputs=inputs, alpha=0.5, beta=0.5)
    assert (made.alpha, made.beta) == (0.5, 0.5)
    assert rs.get_coefficients(network) == COEFFICIENTS["exact"]
    assert network.training
    (found,) = run(made.path, (inputs, {}))
    assert not torch.equal(found, outputs(network, (inputs, {}))[0])
    rs.set_coefficients(network, 0.5, 0.5)
    assert torch.equal(found, outputs(network, (inputs, {}))[0])


def test_at_beta_0_the_program_is_the_pretrained_network(tmp_path: Path) -> None:
    network, inputs = stack("exact")
    made = rs.export(network, output=tmp_path / "a.pt2", example_inputs=inputs, alpha=1.0, beta=0.0)
    assert made.arithmetic is None
    operations = {str(node.target) for node in torch.export.load(made.path).graph.nodes}
    assert "aten.floor.default" not in operations


def test_chunks_compilation_and_wrappers_are_left_out(tmp_path: Path) -> None:
    network, inputs = stack("exact")
    rs.compile_segments(network, backend="eager")
    for chain in rs.chains(network):
        chain.chunks = 2
    made = rs.export(
        torch.compile(network, backend="eager"), output=tmp_path / "a.pt2", example_inputs=inputs
    )
    assert made.batch == "any"
    assert [chain.chunks for chain in rs.chains(network)] == [2]
    assert rs.chains(network)[0].compile_options == {"backend": "eager"}


class ByHalves(nn.Module):
    """Works on the two halves of a batch of four."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x.view(2, 2, 5, 8)).view(4, 5, 8)


def test_a_network_for_one_size_of_the_batch_is_exported_for_that_size(tmp_path: Path) -> None:
    network, inputs = rewired_from(
        lambda: nn.Sequential(ByHalves(), ByHalves()), "exact", torch.randn(4, 5, 8)
    )
    made = rs.export(network, output=tmp_path / "a.pt2", example_inputs=inputs)
    assert made.batch == 4
    assert made.reason is not None
    assert torch.equal(run(made.path, (inputs, {}))[0], outputs(network, (inputs, {}))[0])
    with pytest.raises(rs.UsageError, match="cannot be exported for a batch of any size"):
        rs.export(network, output=tmp_path / "b.pt2", example_inputs=inputs, batch="any")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


def test_an_example_of_one_sample_gives_a_program_for_any_batch(tmp_path: Path) -> None:
    network, (x,) = stack("exact")
    made = rs.export(network, output=tmp_path / "a.pt2", example_inputs=x[:1])
    assert made.batch == "any"
    for batch in (x[:1], x):
        assert torch.equal(run(made.path, ((batch,), {}))[0], outputs(network, ((batch,), {}))[0])


PROGRAM = """
import json, sys, torch
program = torch.export.load(sys.argv[1]).module()
out = program(pixel_values=torch.zeros(3, 4, 3, 32, 32))
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps([sorted(out), list(out["logits"].shape), loaded]))
"""


@slow
def test_a_program_needs_torch_alone_and_names_its_outputs(tmp_path: Path) -> None:
    network, inputs = rewired("transformers videomae", "exact")
    made = check(network, inputs, "torch-export", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(made.path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    names, shape, modules = json.loads(done.stdout)
    assert names == ["logits"]
    assert shape == [3, 2]
    assert not {"revsurgeon", "transformers", "timm"} & set(modules)
    made = check(network, inputs, "onnx", tmp_path)
    session = onnxruntime.InferenceSession(made.path)
    assert [entry.name for entry in session.get_outputs()] == ["logits"]
    assert session.get_inputs()[0].shape == ["batch", 4, 3, 32, 32]


def test_a_program_says_where_it_comes_from_and_keeps_no_data(tmp_path: Path) -> None:
    network, inputs = stack("exact")
    made = rs.export(network, output=tmp_path / "a.pt2", example_inputs=inputs)
    note = {"revsurgeon.json": ""}
    program = torch.export.load(made.path, extra_files=note)
    assert program.example_inputs is None
    told = json.loads(note["revsurgeon.json"])
    assert (told["alpha"], told["beta"], told["arithmetic"]) == (*COEFFICIENTS["exact"], "exact")
    made = rs.export(network, "onnx", output=tmp_path / "a.onnx", example_inputs=inputs)
    metadata = onnxruntime.InferenceSession(made.path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["revsurgeon"]) == told


@slow
def test_large_weights_of_an_onnx_program_are_in_a_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from revsurgeon.exporting import onnx_program

    monkeypatch.setattr(onnx_program, "LARGEST_FILE", 0)
    network, inputs = stack("exact")
    made = check(network, inputs, "onnx", tmp_path)
    assert [file.name for file in made.files] == ["network.onnx", "network.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.onnx", "network.onnx.data"]
