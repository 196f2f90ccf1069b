"""What README.md shows is run as it stands, and its figures are those of the result files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import revsurgeon
from revsurgeon.cli.app import run as run_in_process
from tests.docs.pages import blocks, run_blocks, run_line
from tests.models import residual_stack, seeded

ROOT = Path(__file__).parents[1]
PACKAGE = Path(revsurgeon.__file__).parent
PAGE = ROOT / "README.md"
README = PAGE.read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
SET_UP = ("pip install . && revsurgeon convert demo --mode dr2", 'pip install ".[test]" && pytest')
ON_THE_HUB = " facebook/"
COLUMNS = ("stored", "checkpoint", "reversible, float, beta 0.7", "reversible, exact, beta 0.1")


def commands() -> list[str]:
    """The lines of all bash blocks; of the set-up lines, what follows the installation."""
    lines = [line for block in blocks(PAGE, "bash") for line in block.commands]
    return [line.removeprefix("pip install . && ") for line in lines if line != SET_UP[1]]


def run_offline(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line in a process that finds neither a network nor a cache."""
    cache = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "no-cache"), "PYTHONPATH": str(PACKAGE.parent)}
    arguments = [sys.executable, "-m", "revsurgeon.cli", *shlex.split(line)[1:]]
    return subprocess.run(
        arguments, cwd=folder, env={**os.environ, **cache}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_the_set_up_is_two_lines():
    assert [block.code for block in blocks(PAGE, "bash")[:2]] == [f"{line}\n" for line in SET_UP]


@pytest.fixture
def _few_threads() -> Iterator[None]:
    """The networks here are small: threads that wait for each other would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_few_threads")
def test_every_command_of_the_readme_works_one_after_the_other(folder):
    for line in commands():
        if ON_THE_HUB not in line:
            run_line(line, folder)


def test_the_command_that_needs_the_hub_says_so_without_a_network(folder):
    (line,) = (line for line in commands() if ON_THE_HUB in line)
    done = run_offline(line, folder)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("_few_threads")
def test_the_python_examples_work_one_after_the_other(folder, capsys):
    if not (folder / "demo-dr2").exists():
        run_line(commands()[0], folder)
    capsys.readouterr()
    examples = blocks(PAGE, "python")
    run_blocks(examples, folder)
    assert len(examples) == 3
    assert (folder / "demo-finetuned" / "model.safetensors").exists()
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in shown] == [[f"stages.{i}.blocks", "2", "segments"] for i in range(4)]


def test_every_file_that_the_readme_links_to_is_there():
    for page in (ROOT / "README.md", PACKAGE / "anatomy" / "README.md", PACKAGE / "reversible" / "README.md"):
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
        assert links
        assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_table_of_bytes_is_that_of_the_result_file():
    document = json.loads((RESULTS / "activation_bytes.json").read_text())
    assert f"`{document['command']}`" in README
    for entry in document["networks"]:
        sizes = {row["strategy"]: row for row in entry["bytes"]}
        whole = [f"{sizes[name]['saved'] / 1e6:.1f}" for name in COLUMNS]
        chains = [f"{sizes[name]['in_chains'] / 1e6:.1f}" for name in COLUMNS]
        cells = [f"{a} ({b})" for a, b in zip(whole, chains, strict=True)]
        segments = ", ".join(str(chain["segments"]) for chain in entry["chains"])
        assert f"| {entry['network']} | {segments} | {' | '.join(cells)} |" in README
    assert document["gpu"] == "not measured yet"


def test_the_table_of_gradient_errors_is_that_of_the_result_file():
    document = json.loads((RESULTS / "float_error.json").read_text())
    assert f"`{document['command']}`" in README
    for table in document["tables"]:
        errors = " | ".join(f"{row['float']:.0e}".replace("e-0", "e-") for row in table["errors"])
        assert f"| float, {table['segments']} segments | {errors} |" in README
        assert {row["exact"] for row in table["errors"]} == {0.0}
        assert f"| exact, {table['segments']} segments | 0 | 0 | 0 | 0 | 0 | 0 |" in README


def test_the_readme_names_no_command_that_does_not_exist(capsys):
    capsys.readouterr()
    assert run_in_process(["--help"]) == 0
    known = set(re.findall(r"^  ([a-z]+)  ", capsys.readouterr().out, flags=re.MULTILINE))
    code = "\n".join([*(block.code for block in blocks(PAGE, "bash")), *re.findall(r"`([^`\n]+)`", README)])
    named = set(re.findall(r"\brevsurgeon ([a-z]+)\b", code))
    commands = "convert verify errmap memory bench export push inspect recipes demo"
    assert named == set(commands.split())
    assert named <= known


def test_torch_compile_of_a_whole_network_gives_the_gradients_of_the_plain_one():
    network, inputs = seeded(residual_stack)
    revsurgeon.rewire(network, example_inputs=inputs)
    compiled = torch.compile(network, backend="eager")
    expected = torch.autograd.grad(network(*inputs).sum(), list(network.parameters()))
    actual = torch.autograd.grad(compiled(*inputs).sum(), list(network.parameters()))
    assert all(map(torch.equal, actual, expected))
