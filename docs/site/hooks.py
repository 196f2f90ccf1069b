"""Takes pages from outside docs/ into the site, and makes links between all of them right.

Pages are written to be read in the repository, where they link to code and to each other by their paths. On
the site a link to a page leads to that page, a picture is copied, and any other link becomes its path.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs reads this file alone
from commands import page as commands_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

TAKEN_IN = {
    "README.md": "index.md",
    "revsurgeon/reversible/README.md": "how/reversible.md",
    "revsurgeon/anatomy/README.md": "how/anatomy.md",
}
"""Pages from elsewhere: path in the repository, place on the site."""

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)]*)?\)")


def on_config(config: MkDocsConfig, **_: Any) -> MkDocsConfig:
    """Put the pages that the navigation does not name at its end."""
    named = set(re.findall(r"[\w./-]+\.md", str(config.nav)))
    rest = sorted(page.name for page in DOCS.glob("*.md") if page.name not in named)
    if config.nav is not None and rest:
        config.nav.append({"More": rest})
    return config


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages from elsewhere, that of the commands, and the pictures of the benchmarks."""
    files.append(File.generated(config, "commands.md", content=commands_page()))
    for path, place in TAKEN_IN.items():
        files.append(File.generated(config, place, content=(ROOT / path).read_text(encoding="utf-8")))
    for picture in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make the links of a page right."""
    place = page.file.src_uri
    origin = next((path for path, taken in TAKEN_IN.items() if taken == place), f"docs/{place}")

    def written_for_the_site(link: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(origin), link["target"]))
        target = place_of(path)
        if target is None:
            return f"{link['text']} (`{path}`)" if link["text"] != path else f"`{path}`"
        relative = os.path.relpath(target, os.path.dirname(place) or ".")
        return f"{link['picture']}[{link['text']}]({relative}{link['anchor'] or ''})"

    return LINK.sub(written_for_the_site, markdown)


def place_of(path: str) -> str | None:
    """Where a file of the repository is on the site; None if it is not there."""
    if path in TAKEN_IN:
        return TAKEN_IN[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("benchmarks/results/") and path.endswith(".png"):
        return f"results/{Path(path).name}"
    return None
