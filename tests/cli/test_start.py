"""Starting up: what answers without torch, and what help says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMMANDS = [
    ("convert",),
    ("inspect",),
    ("errmap",),
    ("export",),
    ("demo",),
    ("recipes", "list"),
    ("recipes", "show"),
    ("recipes", "validate"),
    ("recipes", "schema"),
]
HEAVY = ["torch", "timm", "torchvision", "transformers", "numpy", "matplotlib", "huggingface_hub", "rich"]


def modules_loaded_by(*arguments: str) -> set[str]:
    program = (
        "import sys, json; from revsurgeon.cli.app import run; "
        f"run({list(arguments)!r}); print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["recipes", "list"], ["convert", "--help"], ["recipes", "show", "re2"]],
    ids=" ".join,
)
def test_what_must_answer_at_once_imports_nothing_heavy(arguments):
    assert modules_loaded_by(*arguments).isdisjoint(HEAVY)


def test_a_command_line_that_does_not_parse_imports_nothing_heavy():
    assert modules_loaded_by("convert", "demo", "--mode", "dr3").isdisjoint(HEAVY)


def test_a_recipe_that_is_wrong_is_reported_before_torch_is_imported():
    loaded = modules_loaded_by("convert", "demo", "--recipe", "no-such-recipe")
    assert loaded.isdisjoint(["torch", "timm", "transformers", "huggingface_hub"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_ends_in_examples(revsurgeon, command):
    result = revsurgeon(*command, "--help")
    assert result.code == 0
    last = result.out.rstrip().splitlines()[-1].strip()
    assert last.startswith(f"$ revsurgeon {command[0]}")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_takes_json_quiet_and_debug(revsurgeon, command):
    text = revsurgeon(*command, "--help").out
    assert all(option in text for option in ("--json", "--quiet", "--debug"))


def test_the_version_is_one_line(revsurgeon):
    result = revsurgeon("--version")
    assert result.code == 0
    assert result.out.startswith("revsurgeon ")
    assert result.out.count("\n") == 1


@pytest.mark.parametrize("group", [[], ["recipes"]], ids=["revsurgeon", "recipes"])
def test_a_group_without_a_command_shows_its_help_and_counts_as_bad_usage(revsurgeon, group):
    result = revsurgeon(*group)
    assert result.code == 2
    assert result.out == ""
    assert "Commands:" in result.err


@pytest.mark.parametrize("columns", [40, 60, 100, 200])
def test_help_keeps_to_the_width_of_the_terminal(columns):
    done = subprocess.run(
        [sys.executable, "-m", "revsurgeon.cli", "convert", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": str(columns), "PATH": ""},
    )
    prose, _, _ = done.stdout.partition("Examples:")  # commands to copy are not broken
    assert max(map(len, prose.splitlines())) <= min(columns, 100)
