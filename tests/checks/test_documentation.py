"""docs/verify.md says what the command does: its checks, options, exit codes and files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from revsurgeon.checks import CHECKS, thresholds
from revsurgeon.recipes import Checks
from revsurgeon.recipes.schema import CheckName
from tests.cli.conftest import Run, revsurgeon

__all__ = ["revsurgeon"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_table_of_checks_and_the_example_name_every_check_in_order() -> None:
    first = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    example = re.findall(r"^\| (\w+) \| passed \|", PAGE, flags=re.MULTILINE)
    assert first == example == list(CHECKS)
    assert list(CHECKS) == list(CheckName.__args__)


def test_every_option_on_the_page_is_one_of_the_command(revsurgeon: Run) -> None:
    words = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    others = {"--arithmetic", "--mode", "--no-verify"}  # of convert
    others |= {"--edit-last", "--create-if-none", "--body-file"}  # of gh, in the workflow
    helped = revsurgeon("verify", "--help").out
    assert {word for word in words - others if not re.search(rf"{word}\b", helped)} == set()
    converts = revsurgeon("convert", "--help").out
    assert all(word in converts for word in ("--arithmetic", "--mode", "--no-verify"))


def test_the_workflow_the_hook_and_the_recipe_are_what_they_should_be() -> None:
    recipe, workflow, hooks = (yaml.safe_load(text) for text in blocks("yaml"))
    Checks.model_validate(recipe["checks"])
    runs = [step["run"] for step in workflow["jobs"]["verify"]["steps"] if "run" in step]
    assert any(shlex.split(run)[:2] == ["revsurgeon", "verify"] for run in runs)
    (hook,) = hooks["repos"][0]["hooks"]
    (published,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["id"] == published["id"]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)h][^)]*)\)", PAGE))
def test_links_lead_to_files(link: str) -> None:
    assert (ROOT / "docs" / link).is_file()


def test_the_figures_on_the_page_are_those_of_the_code() -> None:
    assert f"{thresholds.FLOAT_LIMIT:g}" == "0.01"
    assert thresholds.RECOVERED_LIMIT == 0.1
    assert thresholds.ORDER_BAND == 0.1
    assert thresholds.REFERENCE_FACTOR == thresholds.REPEAT_FACTOR == 4
