"""The page about recipes has every key of the schema, in the schema's own words."""

from __future__ import annotations

from pathlib import Path

from revsurgeon.recipes import load_recipe, preset_names
from revsurgeon.recipes.schema import Checks, Recipe, Schedule, Until
from tests.docs.pages import ROOT, blocks

PATH = ROOT / "docs" / "recipes.md"
PAGE = PATH.read_text(encoding="utf-8")
PARTS = {"": Recipe, "schedule.": Schedule, "schedule.until.": Until, "checks.": Checks}


def rows() -> list[str]:
    """The table's rows."""
    return [
        f"| `{where}{name}` | {(field.description or '').replace('|', chr(92) + '|')} |"
        for where, part in PARTS.items()
        for name, field in part.model_fields.items()
    ]


def test_every_key_is_on_the_page_as_the_schema_says_it() -> None:
    lines = PAGE.splitlines()
    assert [row for row in rows() if row not in lines] == []
    assert len([line for line in lines if line.startswith("| `") and line.count("|") >= 3]) == len(rows())


def test_the_recipe_that_it_shows_is_valid(tmp_path: Path) -> None:
    (shown,) = blocks(PATH, "yaml")
    file = tmp_path / "shown.yaml"
    file.write_text(shown.code, encoding="utf-8")
    assert load_recipe(file).end is not None


def test_every_preset_of_a_method_is_named() -> None:
    methods = [name for name in preset_names() if name.startswith(("dr2-", "re2"))]
    assert len(methods) >= 4
    assert [name for name in methods if f"`{name}`" not in PAGE] == []
