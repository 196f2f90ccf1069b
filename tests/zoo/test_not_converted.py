"""The page "my model is not converted" explains every reason code, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from revsurgeon.anatomy import Reason

PAGE = Path(__file__).parents[2] / "docs" / "not-converted.md"
README = Path(__file__).parents[2] / "revsurgeon" / "anatomy" / "README.md"
CODES = {str(reason) for reason in Reason}


def test_every_reason_has_a_section_and_every_section_a_reason() -> None:
    sections = re.findall(r"^### `([\w-]+)`$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(sections) == len(set(sections))
    assert set(sections) == CODES


def test_every_section_says_something() -> None:
    _, *sections = re.split(
        r"^### .*$", PAGE.read_text().partition("## None of these")[0], flags=re.MULTILINE
    )
    assert all(len(section.split()) > 8 for section in sections)


def test_the_table_beside_the_code_has_the_same_codes() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", README.read_text(), flags=re.MULTILINE)
    assert set(rows) == CODES
