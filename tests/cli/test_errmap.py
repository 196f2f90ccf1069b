"""`revsurgeon errmap`: its files and documents, what it refuses, and that nothing done is lost."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import revsurgeon as rs

from .conftest import Run


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "here"
    return rs.convert("demo", recipe="dr2-balanced", output=output, start=(0.8, 0.2), verify=False)


def document(path: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found


def test_the_demo_just_works_and_leaves_a_picture_and_two_files(revsurgeon: Run, tmp_path: Path) -> None:
    result = revsurgeon("errmap", "demo", "--grid", "3")
    assert result.code == 0, result.err
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"demo-errmap.{x}" for x in ("csv", "json", "png")]
    assert "Recommended: " in result.out
    assert "relative gradient error, float" in result.out
    assert "Measuring 9 of 9 points" in result.err
    lines = list(csv.reader(Path("demo-errmap.csv").read_text().splitlines()))
    # A line for all parameters and one for the chain at the 6 points with a beta, one at each of the others.
    assert len(lines) == 1 + 6 * 2 + 3


def test_the_document_is_the_map_and_where_its_files_are(revsurgeon: Run) -> None:
    result = revsurgeon(
        "errmap", "demo", "--grid", "3", "--arithmetic", "both", "--output", "a.svg", "--json"
    )
    found = json.loads(result.out)
    assert found.pop("files") == {"json": "a.json", "csv": "a.csv", "plot": "a.svg"}
    assert found == document("a.json")
    assert found["complete"]
    assert {p["exact"]["relative"] for p in found["points"] if p["beta"]} == {0.0}
    assert Path("a.svg").read_text().startswith("<?xml")


def test_quiet_prints_one_path_alone(revsurgeon: Run, artifact: Path) -> None:
    result = revsurgeon("errmap", str(artifact), "--grid", "2", "--quiet", "--plot", "picture.pdf")
    assert (result.code, result.out, result.err) == (0, "here-errmap.json\n", "")
    assert Path("picture.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_the_recipe_that_is_written_is_one_that_convert_takes(revsurgeon: Run, artifact: Path) -> None:
    result = revsurgeon("errmap", str(artifact), "--grid", "5", "--write-recipe", "best.yaml", "--json")
    chosen = json.loads(result.out)["recommended"]
    converted = revsurgeon("convert", "demo", "--recipe", "best.yaml", "--output", "best", "--quiet")
    assert converted.code == 0, converted.err
    (chain,) = rs.chains(rs.load("best"))
    assert [chain.alpha, chain.beta, chain.arithmetic] == [*chosen["start"], chosen["arithmetic"]]
    assert Path("best.yaml").read_text().startswith("# From the error map of here.")
    again = revsurgeon("errmap", str(artifact), "--grid", "5", "--resume", "--write-recipe", "best.yaml")
    assert again.code == 2
    assert "--force" in again.err


def test_a_converted_network_is_measured_on_its_own_path(revsurgeon: Run, artifact: Path) -> None:
    documents = []
    for path in (artifact, artifact / "model.safetensors"):
        result = revsurgeon("errmap", str(path), "--grid", "2", "--json", "--output", "map", "--force")
        assert result.code == 0, result.err
        documents.append(json.loads(result.out))
    path = documents[0]["configuration"]["path"]
    assert path == {"start": [0.8, 0.2], "end": [0.3, 0.7], "order": "simultaneous"}
    assert documents[0]["points"] == documents[1]["points"]


@pytest.mark.slow
def test_a_source_with_random_weights_is_rewired_in_memory(revsurgeon: Run) -> None:
    source = ("timm:vit_tiny_patch16_224", "--random-weights", "--input", "x=1x3x224x224")
    Path("short.yaml").write_text(
        "name: short\nmode: dr2\nstart: {alpha: 0.9, beta: 0.1}\ninclude: [blocks.0, blocks.1]\n"
    )
    values = ("--alpha", "0.5", "--beta", "0.5")
    result = revsurgeon("errmap", *source, "--recipe", "short.yaml", *values, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert [chain["segments"] for chain in found["configuration"]["chains"]] == [4]
    assert found["files"]["json"] == "vit_tiny_patch16_224-errmap.json"
    assert found["configuration"]["inputs"][0]["shape"] == [1, 3, 224, 224]


def test_real_inputs_and_a_dtype_are_measured_with(revsurgeon: Run, artifact: Path) -> None:
    numpy.save("images.npy", numpy.full((3, 1, 8, 8), 0.5))
    options = ("--real-input", "images.npy", "--dtype", "float64", "--alpha", "0.5", "--beta", "0.5")
    result = revsurgeon("errmap", str(artifact), *options, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["configuration"]["dtype"] == "float64"
    assert found["configuration"]["inputs"][0]["shape"] == [3, 1, 8, 8]
    # Half of float64's digits more than float32's: 1e-4 becomes less than 1e-11.
    assert found["points"][0]["float"]["relative"] < 1e-11


def test_the_measure_and_the_chain_that_are_asked_for_are_shown(revsurgeon: Run, artifact: Path) -> None:
    result = revsurgeon("errmap", str(artifact), "--grid", "2", "--metric", "max-abs", "--chain", "blocks")
    assert result.code == 0, result.err
    assert "largest gradient error, float" in result.out


@pytest.mark.parametrize(
    ("columns", "size", "shown"),
    [
        (72, 11, "The map is 73 columns wide and the terminal 72; see the picture."),
        (73, 11, "\ndrift"),
        (71, 3, "\ndrift"),
        (72, 3, "relative gradient error, float        drift"),
    ],
)
def test_maps_stand_beside_each_other_where_they_fit(columns: int, size: int, shown: str) -> None:
    from rich.console import Console

    from revsurgeon.cli.errmap_cells import maps
    from tests.errormap.synthetic import error_map

    writer = Console(width=columns, color_system=None)
    with writer.capture() as written:
        for line in maps(error_map(size), "relative", None, columns, coloured=True):
            writer.print(line)
    lines = written.get().splitlines()
    assert shown in "\n".join(lines)
    if "see the picture" not in shown:
        assert max(map(len, lines)) <= columns
        assert sum(line.strip().startswith("0.5 ") for line in lines) == (2 if "\n" in shown else 1)


def test_a_map_in_colours_says_the_same_as_one_without(revsurgeon: Run) -> None:
    from revsurgeon.cli.errmap_cells import maps
    from tests.errormap.synthetic import error_map

    plain, coloured = (maps(error_map(3), "relative", None, None, coloured=c) for c in (False, True))
    assert [str(line) for line in plain] == [str(line) for line in coloured]
    assert not any(getattr(line, "spans", ()) for line in plain)
    assert any(getattr(line, "spans", ()) for line in coloured)


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a grid of one": (("--grid", "1"), "not a number of points"),
    "an empty grid": (("--beta", ","), "no beta"),
    "a beta above one": (("--beta", "0.5,1.5"), "out of range"),
    "an alpha below zero": (("--alpha", "-1"), "out of range"),
    "no picture": (("--plot", "a.jpg"), "no picture"),
    "no folder": (("--output", "no/where"), "not there"),
    "no folder for the recipe": (("--write-recipe", "no/where.yaml"), "not there"),
    "no jobs": (("--jobs", "0"), "--jobs"),
    "another measure": (("--metric", "error"), "--metric"),
    "a chain that there is not": (("--grid", "2", "--chain", "head"), "no chain 'head'"),
    "inputs of another shape": (("--real-input", "images.npy"), "takes Nx1x8x8"),
    "a pickle": (("--real-input", "code.pt"), "more than tensors"),
    "no inputs": (("--real-input", "none.npy"), "not there"),
    "a recipe that there is not": (("--recipe", "nothing"), "no recipe 'nothing'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    revsurgeon: Run, case: str, tmp_path: Path, artifact: Path
) -> None:
    numpy.save("images.npy", numpy.zeros((2, 3, 8, 8), dtype=numpy.float32))
    torch.save({"0": object.__new__(subprocess.Popen)}, "code.pt") if case == "a pickle" else None
    before = sorted(tmp_path.iterdir())
    arguments, message = REFUSED[case]
    source = "demo" if "--recipe" in arguments else str(artifact)
    result = revsurgeon("errmap", source, *arguments)
    assert result.code == 2, result.err
    assert message in result.err
    assert sorted(tmp_path.iterdir()) == before


def test_options_of_a_source_are_refused_for_a_converted_network(revsurgeon: Run, artifact: Path) -> None:
    for option in (("--recipe", "re2"), ("--random-weights",), ("--revision", "main")):
        result = revsurgeon("errmap", str(artifact), "--grid", "2", *option)
        assert result.code == 2
        assert "rewired already" in result.err


Start = Callable[..., "subprocess.Popen[str]"]


def wait_for_points(process: subprocess.Popen[str], path: Path, least: int) -> None:
    until = time.monotonic() + 200
    while not path.exists() or len(document(path)["points"]) < least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_ctrl_c_keeps_what_is_done_and_resume_goes_on(
    start: Start, revsurgeon: Run, artifact: Path, tmp_path: Path, jobs: str
) -> None:
    command = ("errmap", str(artifact), "--output", "map", "--grid")
    process = start(*command, "30", "--jobs", jobs)
    wait_for_points(process, tmp_path / "map.json", 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "Interrupted: stopped by Ctrl-C."
    assert "go on with --resume" in err
    assert "Traceback" not in err
    done = document("map.json")
    assert 3 <= len(done["points"]) < 900
    assert not done["complete"]
    assert f"{len(done['points'])} of 900 points" in err

    other = revsurgeon(*command, "29", "--resume")
    assert other.code == 2
    assert "measured differently" in other.err
    assert document("map.json") == done


@pytest.mark.slow
def test_a_killed_run_leaves_a_file_that_reads_and_resume_completes_it(
    start: Start, revsurgeon: Run, artifact: Path, tmp_path: Path
) -> None:
    command = ("errmap", str(artifact), "--output", "map", "--grid", "9")
    process = start(*command)
    wait_for_points(process, tmp_path / "map.json", 2)
    process.kill()
    process.communicate()
    done = document("map.json")["points"]
    assert done
    result = revsurgeon(*command, "--resume", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["complete"]
    assert len(found["points"]) == 81
    assert all(point in found["points"] for point in done)
