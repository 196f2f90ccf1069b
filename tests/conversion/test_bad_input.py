"""What cannot be converted: a clear message, the right exit code, nothing written and nothing downloaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import revsurgeon as rs
from tests.hub_server import HubServer

from .conftest import Run


def refused(revsurgeon: Run, code: int, *arguments: str) -> dict[str, str]:
    """Run a command line that must fail with `code` and leave the directory as it was; its error."""
    before = sorted(os.listdir())
    result = revsurgeon(*arguments, "--json")
    document = json.loads(result.out)
    assert result.code == document["exit_code"] == code
    assert "Traceback" not in result.err
    assert sorted(os.listdir()) == before
    error: dict[str, str] = document["error"]
    return error


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--dtype", "float8"),
        ("--arithmetic", "fuzzy"),
        ("--granularity", "layer"),
        ("--merge", "mean"),
        ("--mode", "dr3"),
        ("--recipe", "no-such-recipe"),
        ("--recipe", "./no-such-recipe.yaml"),
        ("--max-shard-size", "many"),
        ("--input", "x=axb"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(revsurgeon: Run, option: str, value: str) -> None:
    error = refused(revsurgeon, 2, "convert", "demo", option, value)
    assert value.removeprefix("./").removeprefix("x=") in f"{error['what']} {error['where']}"
    assert error["hint"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", "float8"),
        ("dtype", "int64"),
        ("arithmetic", "fuzzy"),
        ("granularity", "layer"),
        ("merge", "mean"),
        ("mode", "dr3"),
        ("recipe", "no-such-recipe"),
        ("max_shard_size", "many"),
        ("inputs", ["x=axb"]),
    ],
)
def test_the_function_refuses_the_same(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(rs.RevsurgeonError) as raised:
        rs.convert("demo", **{option: value})
    assert raised.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--recipe", "./wrong.yaml"),
        ("--recipe", "no-such-recipe"),
        ("--mode", "re2", "--recipe", "dr2-hold"),
        ("--arithmetic", "fuzzy"),
        ("--max-shard-size", "many"),
        ("--output", "there"),
    ],
    ids=" ".join,
)
def test_nothing_is_asked_of_the_hub_when_the_rest_is_wrong(
    revsurgeon: Run, hub: HubServer, videomae: Path, arguments: tuple[str, ...]
) -> None:
    hub.add("facebook/videomae-small", videomae)
    Path("wrong.yaml").write_text("name: wrong\nmode: dr2\nstart: {alpha: 1.5, beta: 0.1}\n")
    Path("there").mkdir()
    refused(revsurgeon, 2, "convert", "facebook/videomae-small", *arguments)
    assert hub.requests == []


@pytest.mark.parametrize("option", [("--include", "layers.*"), ("--exclude", "**")])
def test_patterns_that_leave_nothing_are_told_as_such(revsurgeon: Run, option: tuple[str, str]) -> None:
    error = refused(revsurgeon, 4, "convert", "demo", *option)
    assert "no block" in error["what"]
    assert "excluded" in error["where"]


def test_a_network_joined_by_concatenation_is_refused_with_reasons(revsurgeon: Run) -> None:
    error = refused(revsurgeon, 4, "convert", "python:tests.conversion.factories:densenet")
    assert "no block" in error["what"]
    assert "features" in error["where"]
    assert "concatenation" in error["where"]
    assert "revsurgeon inspect" in error["hint"]


def test_an_output_that_is_there_is_refused_before_the_source_is_looked_at(
    revsurgeon: Run, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    error = refused(revsurgeon, 2, "convert", "no/such-network", "--output", "out")
    assert "already there" in error["what"]
    error = refused(revsurgeon, 2, "convert", "no/such-network", "--output", "out", "--force")
    assert "notes.txt" in f"{error['what']} {error['where']}"
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_named(revsurgeon: Run) -> None:
    # The system's own files refuse a new directory to every user, root included.
    error = refused(revsurgeon, 2, "convert", "demo", "--arithmetic", "exact", "--output", "/proc/out")
    assert "cannot be written" in error["what"]
    assert error["where"] == "/proc/out"


def test_a_truncated_checkpoint_is_named(revsurgeon: Run, videomae: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((videomae / "config.json").read_bytes())
    data = (videomae / "model.safetensors").read_bytes()
    for size in (0, 7, len(data) // 100, len(data) // 2, len(data) - 1):
        (source / "model.safetensors").write_bytes(data[:size])
        error = refused(revsurgeon, 2, "convert", "./source")
        assert "model.safetensors" in error["where"]
        assert error["hint"]


def test_weights_that_are_not_numbers_are_named(revsurgeon: Run) -> None:
    error = refused(revsurgeon, 2, "convert", "python:tests.conversion.factories:stack_with_a_nan")
    assert "not a number" in error["what"]
    assert "blocks.1.linear.weight" in error["where"]
    assert "blocks.0" not in error["where"]


def test_a_network_of_ones_own_with_such_a_weight_is_left_as_it_was() -> None:
    from tests.conversion.factories import stack_with_a_nan

    network, inputs = stack_with_a_nan()
    with pytest.raises(rs.SourceError, match="not a number"):
        rs.rewire(network, example_inputs=inputs)
    assert rs.chains(network) == []


def test_without_the_check_such_weights_are_converted_as_they_are(revsurgeon: Run) -> None:
    spec = "python:tests.conversion.factories:stack_with_a_nan"
    assert revsurgeon("convert", spec, "--no-verify", "--output", "out").code == 0
    loaded = rs.load("out", allow_python=True)
    assert bool(loaded.get_parameter("blocks.1.linear.weight").isnan().any())
