"""What README.md shows is run as it stands, and its figures are those of the result files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import revsurgeon.errors
from tests.models import residual_stack, seeded

ROOT = Path(__file__).parents[1]
PACKAGE = Path(revsurgeon.errors.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
SET_UP = ("pip install . && revsurgeon convert demo --mode dr2", 'pip install ".[test]" && pytest')
COLUMNS = ("stored", "checkpoint", "reversible, float, beta 0.7", "reversible, exact, beta 0.1")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines of all bash blocks; of the set-up lines, what follows the installation."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line.removeprefix("pip install . && ") for line in lines if line != SET_UP[1]]


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell in which `revsurgeon` is the one under test."""
    programs = f'revsurgeon() {{ {shlex.quote(sys.executable)} -m revsurgeon.cli "$@"; }}\n'
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), str(ROOT)])
    arguments = ["bash", "-c", programs + line]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_the_set_up_is_two_lines():
    assert blocks("bash")[:2] == [f"{line}\n" for line in SET_UP]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_readme_works(line, folder):
    done = run(line, folder)
    needs_the_hub = " facebook/" in line
    assert done.returncode == (5 if needs_the_hub else 0), done.stderr
    assert "Traceback" not in done.stderr


def test_the_python_examples_work_one_after_the_other(folder, monkeypatch, capsys):
    if not (folder / "demo-dr2").exists():
        assert run(commands()[0], folder).returncode == 0
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    namespace: dict[str, Any] = {}
    examples = blocks("python")
    try:
        for example in examples:
            exec(compile(example, "README.md", "exec"), namespace)
    finally:
        torch.set_num_threads(threads)
    assert len(examples) == 3
    assert (folder / "demo-finetuned" / "model.safetensors").exists()
    assert capsys.readouterr().out.splitlines()[0].endswith("0.9 0.1 exact")


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


def test_the_readme_names_no_command_that_does_not_exist():
    done = run("revsurgeon --help", Path.cwd())
    known = set(re.findall(r"^  ([a-z]+)  ", done.stdout, flags=re.MULTILINE))
    code = "\n".join([*blocks("bash"), *re.findall(r"`([^`\n]+)`", README)])
    named = set(re.findall(r"\brevsurgeon ([a-z]+)\b", code))
    assert named == {"convert", "inspect", "recipes", "demo"}
    assert named <= known


def test_torch_compile_of_a_whole_network_gives_the_gradients_of_the_plain_one():
    network, inputs = seeded(residual_stack)
    revsurgeon.rewire(network, example_inputs=inputs)
    compiled = torch.compile(network, backend="eager")
    expected = torch.autograd.grad(network(*inputs).sum(), list(network.parameters()))
    actual = torch.autograd.grad(compiled(*inputs).sum(), list(network.parameters()))
    assert all(map(torch.equal, actual, expected))
