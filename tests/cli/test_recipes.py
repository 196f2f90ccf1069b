"""`revsurgeon recipes`: list, show, validate, schema."""

from __future__ import annotations

import json

from revsurgeon.recipes import Recipe, load_recipe, preset_names, preset_text


def test_list_shows_every_preset_with_its_coefficients(revsurgeon):
    result = revsurgeon("recipes", "list")
    assert result.code == 0
    lines = {line.split()[0]: line for line in result.out.splitlines() if line}
    assert set(preset_names()) < set(lines)
    assert "(0, 1)" in lines["re2"]


def test_list_gives_a_script_the_names_alone(revsurgeon):
    assert revsurgeon("recipes", "list", "--quiet").out.split() == preset_names()


def test_list_as_json_names_mode_and_coefficients(revsurgeon):
    recipes = json.loads(revsurgeon("recipes", "list", "--json").out)["recipes"]
    by_name = {recipe["name"]: recipe for recipe in recipes}
    assert by_name["re2"]["mode"] == "re2"
    assert by_name["re2"]["start"] == {"alpha": 0.0, "beta": 1.0}


def test_show_prints_the_file_so_that_it_can_be_edited(revsurgeon, tmp_path):
    shown = revsurgeon("recipes", "show", "dr2-paper").out
    assert shown.strip() == preset_text("dr2-paper").strip()
    mine = tmp_path / "mine.yaml"
    mine.write_text(shown, encoding="utf-8")
    assert load_recipe(mine) == load_recipe("dr2-paper")
    assert revsurgeon("recipes", "show", str(mine)).out == shown


def test_show_as_json_is_the_validated_recipe(revsurgeon):
    document = json.loads(revsurgeon("recipes", "show", "dr2-hold", "--json").out)
    assert Recipe.model_validate(document) == load_recipe("dr2-hold")


def test_validate_accepts_every_preset(revsurgeon):
    for name in preset_names():
        assert revsurgeon("recipes", "validate", name).code == 0


def test_validate_names_the_line_of_a_mistake(revsurgeon, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("name: mine\nmode: dr2\nstart: {alpha: 0.9, beta: 0.0}\n", encoding="utf-8")
    result = revsurgeon("recipes", "validate", str(mine), "--json")
    document = json.loads(result.out)
    assert result.code == 2
    assert f"{mine}:3" in document["error"]["where"]


def test_schema_is_the_schema_that_recipes_are_checked_with(revsurgeon):
    schema = json.loads(revsurgeon("recipes", "schema").out)
    assert schema == Recipe.model_json_schema()
    assert json.loads(revsurgeon("recipes", "schema", "--json").out) == schema
