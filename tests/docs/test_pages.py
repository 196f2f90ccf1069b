"""The code on the pages of the documentation is run, as it stands or at the size that the page names."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from revsurgeon.cli.app import run as run_command
from tests.docs.pages import ROOT, blocks, run_line, run_page

slow = pytest.mark.slow

PAGES = [  # all but the first with several conversions, sweeps or processes
    "docs/not-converted.md",
    pytest.param("docs/recipes.md", marks=slow),
    pytest.param("docs/which-strategy.md", marks=slow),
    pytest.param("docs/export.md", marks=slow),
    pytest.param("docs/verify.md", marks=slow),
    pytest.param("docs/errmap.md", marks=slow),
    pytest.param("docs/bench.md", marks=[slow, pytest.mark.timeout(1200)]),
    pytest.param("docs/distributed.md", marks=slow),
    pytest.param("docs/evidence.md", marks=[slow, pytest.mark.timeout(1200)]),
    pytest.param("docs/peers.md", marks=[slow, pytest.mark.timeout(1200)]),
]

ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "docs/integrations.md": "tests/docs/test_integrations.py",
    "docs/memory.md": "tests/cli/test_examples.py",
}
"""Pages whose code is run by another test."""

BEFORE = {
    "docs/errmap.md": "revsurgeon convert demo --no-verify",
    "docs/distributed.md": f"ln -s {ROOT}/benchmarks benchmarks",
    "docs/evidence.md": f"cp {ROOT}/docs/evidence.md .",  # the tables are written into a copy
    "docs/peers.md": f"cp {ROOT}/docs/peers.md .",
}
"""What readers of a page have done before, or where they stand."""


@pytest.fixture
def _one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torchrun tells the only process of a training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    told = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_works_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    if page in BEFORE:
        run_line(BEFORE[page], tmp_path)
    run_page(ROOT / page, tmp_path)


def test_every_page_with_code_is_run_by_some_test() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
    with_code = {str(page.relative_to(ROOT)) for page in pages if blocks(page, "python", "bash", "console")}
    listed = {getattr(page, "values", (page,))[0] for page in PAGES}
    assert with_code == {*listed, *ELSEWHERE}
    assert all((ROOT / test).exists() for test in ELSEWHERE.values())


def test_the_commands_that_plan_memory_are_examples_of_its_help_which_are_run_there() -> None:
    with redirect_stdout(StringIO()) as shown:
        assert run_command(["memory", "--help"]) == 0
    examples = {line.strip().removeprefix("$ ") for line in shown.getvalue().splitlines()}
    commands = [line for block in blocks(ROOT / "docs" / "memory.md", "bash") for line in block.commands]
    assert commands
    assert set(commands) <= examples


def test_a_line_that_fails_fails_and_a_traceback_names_the_line_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n```python\n\nassert x == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError) as caught:
        run_page(page, tmp_path)
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == (str(page), 9)
    page.write_text(
        "```bash\nrevsurgeon inspect no-such-file.safetensors  # a comment\n```\n", encoding="utf-8"
    )
    with pytest.raises(AssertionError, match=r"no-such-file\.safetensors"):
        run_page(page, tmp_path)
    page.write_text("```bash\nfalse\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="false"):
        run_page(page, tmp_path)


def test_a_block_that_is_marked_is_left_out_and_its_reason_is_known(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marked = "*No test runs this: it needs a GPU.*\n\n```python\nraise SystemError\n```\n"
    page.write_text(f"{marked}\n```python\ndone = True\n```\n", encoding="utf-8")
    assert run_page(page, tmp_path)["done"]
    assert [block.not_run for block in blocks(page, "python")] == ["it needs a GPU", None]


def test_sizes_are_replaced_as_the_page_says(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    told = "*Tests run this with `3` in place of `300`,\n`y` in\nplace of `x`.*"
    page.write_text(f"{told}\n\n```python\nx = 300\n```\n", encoding="utf-8")
    assert run_page(page, tmp_path)["y"] == 3
    for code, message in (("z = 300\n", "'x' is not in"), ("300 x\n", "the program")):
        page.write_text(f"{told}\n\n```bash\n{code}```\n", encoding="utf-8")
        with pytest.raises(AssertionError, match=message):
            blocks(page, "bash")
    page.write_text("*Tests run this with other sizes.*\n\n```bash\ntrue\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="nothing is replaced"):
        blocks(page, "bash")


def test_output_can_be_written_to_a_file_as_in_a_shell(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nrevsurgeon recipes show \\\n    re2 > own.yaml\ncat own.yaml\n```\n", encoding="utf-8"
    )
    run_page(page, tmp_path)
    assert "mode: re2" in (tmp_path / "own.yaml").read_text(encoding="utf-8")
