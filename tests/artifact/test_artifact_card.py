"""The model card says what was done, and the Hub can read it."""

from __future__ import annotations

import yaml

from revsurgeon.artifact import Manifest, model_card


def front_matter(card: str) -> dict[str, object]:
    opening, front, _ = card.split("---\n", 2)
    assert opening == ""
    data = yaml.safe_load(front)
    assert isinstance(data, dict)
    return data


def test_the_front_matter_names_library_tags_and_base_model_and_leaves_the_license_to_the_source(
    manifest: Manifest,
) -> None:
    front = front_matter(model_card(manifest, "demo-dr2"))
    assert front["library_name"] == "revsurgeon"
    assert front["base_model"] == "org/demo"
    assert isinstance(front["tags"], list)
    assert {"revsurgeon", "reversible", "dr2", "timm"} <= set(front["tags"])
    assert "license" not in front


def test_a_source_that_is_not_on_the_hub_is_no_base_model(manifest: Manifest) -> None:
    local = manifest.model_copy(update={"source": {"spec": "./model", "kind": "local"}})
    assert "base_model" not in front_matter(model_card(local, "demo-dr2"))


def test_the_card_has_recipe_provenance_checks_loading_and_citations(manifest: Manifest) -> None:
    card = model_card(manifest, "demo-dr2")
    assert manifest.recipe.to_yaml() in card
    assert "| spec | `org/demo@main` |" in card
    assert "| equality | passed | largest difference: `0.0` |" in card
    assert "revsurgeon.load('demo-dr2')" in card
    assert "strict=True" in card
    assert "Re2TAL: Rewiring Pretrained Video" in card
    assert "Dr2Net: Dynamic Reversible Dual-Residual Networks" in card


def test_a_check_that_failed_says_so_and_so_does_a_card_without_checks(manifest: Manifest) -> None:
    failed = manifest.model_copy(update={"checks": {"equality": {"passed": False}}})
    assert "| equality | **failed** |" in model_card(failed, "x")
    none = manifest.model_copy(update={"checks": {}})
    assert "None were run" in model_card(none, "x")


def test_the_code_to_load_the_weights_plainly_compiles_for_one_file_and_for_shards(
    manifest: Manifest,
) -> None:
    sharded = manifest.model_copy(update={"files": ["model-00001-of-00002.safetensors"] * 2})
    for card in (model_card(manifest, "x"), model_card(sharded, "x")):
        blocks = [block.partition("\n```")[0] for block in card.split("```python\n")[1:]]
        assert len(blocks) == 2
        for block in blocks:
            compile(block, "card", "exec")


def test_text_from_outside_cannot_break_the_tables(manifest: Manifest) -> None:
    hostile = manifest.model_copy(update={"source": {"spec": "a|b\n\n# title `x`", "files": {"c|d\ne": "f"}}})
    lines = model_card(hostile, "x").splitlines()
    assert "# title" not in [line[:7] for line in lines]
    assert "| spec | `a\\|b # title 'x'` |" in lines
    assert "| files | c\\|d e: `f` |" in lines


def test_the_card_is_the_same_for_equal_manifests(manifest: Manifest) -> None:
    again = Manifest.from_json(manifest.to_json(), "here")
    assert model_card(again, "x") == model_card(manifest, "x")
