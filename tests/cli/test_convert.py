"""`revsurgeon convert`: its options reach the conversion, and its summary says what was made."""

from __future__ import annotations

import json
import shlex

import pytest
import torch

import revsurgeon as rs


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("mode", ["dr2", "re2"])
def test_the_first_command_of_the_readme_writes_an_artifact_that_loads(revsurgeon, tmp_path, mode):
    result = revsurgeon("convert", "demo", "--mode", mode)
    assert result.code == 0
    model = rs.load(tmp_path / f"demo-{mode}")
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert f"demo-{mode}" in result.out
    assert "6 blocks, 12 segments" in result.out
    assert "revsurgeon.load(" in result.out


def test_json_holds_the_manifest_and_where_it_was_written(revsurgeon, tmp_path):
    result = revsurgeon("convert", "demo", "--json")
    document = json.loads(result.out)
    assert document["output"] == "demo-dr2"
    assert document["bytes"] == sum(file.stat().st_size for file in (tmp_path / "demo-dr2").iterdir())
    assert document["manifest"]["coefficients"] == {"alpha": 0.95, "beta": 0.05}
    assert sum(document["manifest"]["chains"][0]["segments"]) == 12


def test_quiet_prints_the_path_alone(revsurgeon):
    result = revsurgeon("convert", "demo", "--quiet", "--output", "here")
    assert (result.code, result.out, result.err) == (0, "here\n", "")


def test_an_existing_output_is_refused_without_force(revsurgeon):
    assert revsurgeon("convert", "demo", "--output", "here").code == 0
    refused = revsurgeon("convert", "demo", "--output", "here")
    assert refused.code == 2
    assert "--force" in refused.err
    assert revsurgeon("convert", "demo", "--output", "here", "--force").code == 0


def test_options_override_the_recipe(revsurgeon):
    result = revsurgeon(
        *("convert", "demo", "--granularity", "block", "--include", "blocks.*", "--exclude", "blocks.0"),
        *("--merge", "last", "--arithmetic", "float", "--json"),
    )
    manifest = json.loads(result.out)["manifest"]
    (chain,) = manifest["chains"]
    assert chain["blocks"] == [f"blocks.{index}" for index in range(1, 6)]
    assert chain["segments"] == [1] * 5
    assert chain["merge"] == "last"
    assert manifest["arithmetic"] == "float"


def test_weights_can_be_cast_on_the_way(revsurgeon):
    manifest = json.loads(revsurgeon("convert", "demo", "--dtype", "bfloat16", "--json").out)["manifest"]
    assert manifest["tensors"] > 0
    assert {parameter.dtype for parameter in rs.load("demo-dr2").parameters()} == {torch.bfloat16}


def test_a_recipe_of_ones_own_is_used(revsurgeon, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nmode: dr2\nstart: {alpha: 0.75, beta: 0.25}\n", encoding="utf-8")
    result = revsurgeon("convert", "demo", "--recipe", str(recipe), "--json")
    manifest = json.loads(result.out)["manifest"]
    assert manifest["recipe"]["name"] == "mine"
    assert manifest["coefficients"] == {"alpha": 0.75, "beta": 0.25}


def test_a_recipe_brings_its_own_mode(revsurgeon):
    manifest = json.loads(revsurgeon("convert", "demo", "--recipe", "re2", "--json").out)["manifest"]
    assert manifest["recipe"]["mode"] == "re2"


def test_a_mode_that_contradicts_the_recipe_is_bad_usage(revsurgeon):
    result = revsurgeon("convert", "demo", "--recipe", "re2", "--mode", "dr2")
    assert result.code == 2
    assert "contradicts" in result.err


def test_an_input_of_another_shape_is_used(revsurgeon):
    result = revsurgeon(
        *("convert", "timm:resnet10t", "--random-weights", "--input", "x=3x3x48x64", "--json")
    )
    assert result.code == 0, result.err
    assert "48, 64" in json.dumps(json.loads(result.out)["manifest"]["inputs"])


@pytest.mark.parametrize("source", ["nonsense:x", "timm:no_such_model", "./no-such-directory"])
def test_a_source_that_does_not_exist_is_bad_input(revsurgeon, source):
    result = revsurgeon("convert", source)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_a_network_in_which_nothing_can_be_rewired_has_its_own_exit_code(revsurgeon, tmp_path):
    result = revsurgeon("convert", "timm:vgg11", "--random-weights", "--json")
    assert result.code == json.loads(result.out)["exit_code"] == 4
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_loads_the_artifact_really_does(revsurgeon):
    result = revsurgeon("convert", "demo", "--output", "it's a name")
    (line,) = [line for line in result.out.splitlines() if line.startswith("Load it: ")]
    python, option, program = shlex.split(line.removeprefix("Load it: "))
    assert (python, option) == ("python", "-c")
    namespace: dict[str, object] = {}
    exec(program, namespace)
    assert isinstance(namespace["model"], torch.nn.Module)
