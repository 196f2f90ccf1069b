"""The documentation builds as a site, without a single warning, and its API page has every public name."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import revsurgeon as rs
from revsurgeon.cli.app import run
from tests.docs.pages import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    configuration = ROOT / "docs" / "site" / "mkdocs.yml"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(configuration), "-d", str(folder)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def ids(page: Path) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))


def test_every_page_of_the_documentation_is_on_the_site(site: Path) -> None:
    pages = [page.stem for page in (ROOT / "docs").glob("*.md")]
    assert [page for page in pages if not (site / page / "index.html").exists()] == []
    for page in ("how/reversible", "how/anatomy", "commands"):
        assert (site / page / "index.html").exists()


def test_every_public_name_is_on_the_api_page(site: Path) -> None:
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in (getattr(rs, name) for name in rs.__all__)}
    assert names - ids(site / "api" / "index.html") == set()


def test_every_command_is_on_the_page_of_the_commands(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    known = set(re.findall(r"^  ([a-z]+)  ", capsys.readouterr().out, flags=re.MULTILINE))
    assert known
    assert known <= ids(site / "commands" / "index.html")


def test_a_docstring_is_on_it_with_its_arguments(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "api" / "index.html").read_text(encoding="utf-8"))
    first = inspect.getdoc(rs.export).splitlines()[0].replace("`", "")
    assert first in text
    assert all(name in text for name in inspect.signature(rs.export).parameters)


def test_no_link_or_picture_leads_nowhere(site: Path) -> None:
    lost = []
    for page in site.rglob("*.html"):
        article = re.search(r"<article.*</article>", page.read_text(encoding="utf-8"), flags=re.S)
        if article is None:
            continue
        for target in re.findall(r'(?:href|src)="([^"]+)"', article[0]):
            if re.match(r"[a-z]+:|#", target):
                continue
            path = (page.parent / target.partition("#")[0]).resolve()
            if not (path.is_file() or (path / "index.html").is_file()):
                lost.append((str(page.relative_to(site)), target))
    assert lost == []
