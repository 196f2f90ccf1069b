"""Recipes: presets, the schema, and errors that name the line and the fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revsurgeon.errors import RecipeError
from revsurgeon.recipes import (
    SMALLEST_BETA,
    Coefficients,
    Recipe,
    Schedule,
    Until,
    load_recipe,
    path_matches,
    preset_names,
    preset_text,
    recipe_schema,
)
from revsurgeon.recipes.strict_yaml import MAX_BYTES, YamlError, dump_yaml, parse_yaml

VALID = "name: mine\nmode: dr2\nstart: {alpha: 0.9, beta: 0.1}\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return path


def error_of(folder: Path, text: str | bytes) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(folder, text))
    return caught.value


# Presets


def test_the_presets_are_the_promised_ones() -> None:
    systems = ["mvit-v2-small", "resnet-50", "slowfast-50", "video-swin-base", "video-swin-small"]
    systems += ["slowfast-101", "pix4point-vit-small", "mask2former-swin-tiny", "swin-tiny-detector"]
    systems += ["video-swin-tiny", "videomae-base", "videomae-small", "vit-mae-base", "vit-small"]
    assert preset_names() == sorted(["dr2-balanced", "dr2-hold", "dr2-paper", "re2", *systems])


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_named_after_its_file_and_says_where_it_comes_from(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert preset_text(name).startswith("# Source")
    assert "CVPR" in preset_text(name)


def test_re2_is_fixed_at_0_1() -> None:
    recipe = load_recipe("re2")
    assert (recipe.mode, recipe.start, recipe.end, recipe.schedule) == (
        "re2",
        Coefficients(alpha=0, beta=1),
        None,
        None,
    )


def test_balanced_starts_on_the_line_where_the_residual_stream_is_conserved_and_stays_on_it() -> None:
    recipe = load_recipe("dr2-balanced")
    assert (recipe.start, recipe.max_drift) == ("auto", 0.05)
    assert recipe.end == Coefficients(alpha=0.3, beta=0.7)
    assert recipe.schedule == Schedule(policy="linear", order="simultaneous", until=Until(fraction=1.0))


def test_paper_moves_from_1_and_a_tenth_in_steps_until_an_epoch() -> None:
    recipe = load_recipe("dr2-paper")
    assert (recipe.start, recipe.end) == (Coefficients(alpha=1, beta=0.1), Coefficients(alpha=0.3, beta=0.7))
    assert recipe.schedule is not None
    assert recipe.schedule.update_every > 1
    assert recipe.schedule.until.epochs is not None


def test_hold_stays_where_the_drift_lets_it_start_in_exact_arithmetic() -> None:
    recipe = load_recipe("dr2-hold")
    assert (recipe.start, recipe.max_drift, recipe.arithmetic) == ("auto", 0.05, "exact")
    assert (recipe.end, recipe.schedule) == (None, None)


def test_the_videomae_preset_suggests_its_source() -> None:
    assert load_recipe("videomae-small").source == "facebook/videomae-small"


@pytest.mark.parametrize(("mode", "name"), [("dr2", "dr2-hold"), ("re2", "re2")])
def test_without_a_recipe_the_mode_chooses_the_preset(mode: str, name: str) -> None:
    assert load_recipe(None, mode) == load_recipe(name)


def test_a_misspelt_preset_is_told_its_near_name() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'dr2-balanced'"):
        load_recipe("dr2-balnced")


def test_a_misspelt_mode_is_told_the_modes() -> None:
    with pytest.raises(RecipeError, match="dr2 and re2"):
        load_recipe(None, "dr3")


def test_a_preset_that_does_not_exist_has_no_text() -> None:
    with pytest.raises(RecipeError, match="videomae-small"):
        preset_text("../pyproject")


# Files


def test_a_recipe_is_found_by_path_as_text_as_path_and_by_bare_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, VALID)
    (tmp_path / "bare").write_text(VALID)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(path) == load_recipe(str(path)) == load_recipe("mine.yaml") == load_recipe("bare")


def test_a_file_named_like_a_preset_is_only_taken_when_it_is_asked_for_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "re2").write_text(VALID)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("re2").name == "re2"
    assert load_recipe("./re2").name == "mine"


@pytest.mark.parametrize("path", ["missing.yaml", "."])
def test_a_path_that_is_no_readable_file_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / path)
    assert str(tmp_path) in str(caught.value)


def test_an_endless_file_is_refused_at_the_limit() -> None:
    with pytest.raises(RecipeError, match="larger than"):
        load_recipe(Path("/dev/zero"))


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    error = error_of(tmp_path, VALID.encode() + b"description: caf\xe9\n")
    assert "UTF-8" in error.what
    assert error.where is not None
    assert error.where.endswith("mine.yaml:4")


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, b"\xef\xbb\xbf" + VALID.encode())).name == "mine"


# Mistakes. Each is: the text, the line and key that are named, and words of the problem and of the fix.

MISTAKES = {
    "an unknown key": (VALID + "strat: {}\n", "4 strat", "'strat' is not a key", "mean 'start'"),
    "an unknown nested key": (
        VALID + "end: {alpha: 0.3, beta: 0.7}\nschedule:\n  polcy: linear\n",
        "6 schedule.polcy",
        "'schedule.polcy' is not a key",
        "mean 'policy'",
    ),
    "beta 0": (
        "name: a\nmode: dr2\nstart:\n  alpha: 1\n  beta: 0\n",
        "5 start.beta",
        "beta is 0",
        "Use beta: 0.1",
    ),
    "beta 0 at the end": (
        VALID + "end: {alpha: 1, beta: 0.0}\n",
        "4 end.beta",
        "cannot be reversed",
        "Use beta: 0.1",
    ),
    "a beta too small to be stored": (
        "name: a\nmode: dr2\nstart: {alpha: 1, beta: 1e-5}\n",
        "3 start.beta",
        "below 2**-16",
        "Use beta: 0.01",
    ),
    "an alpha above 1": (
        "name: a\nmode: dr2\nstart:\n  alpha: 1.5\n  beta: 0.1\n",
        "4 start.alpha",
        "1.5, which is outside [0, 1]",
        "from 0 to 1",
    ),
    "a negative beta": (
        "name: a\nmode: dr2\nstart: {alpha: 1, beta: -0.1}\n",
        "3 start.beta",
        "outside [0, 1]",
        "from 0 to 1",
    ),
    "a word for a number": (
        "name: a\nmode: dr2\nstart: {alpha: high, beta: 0.1}\n",
        "3 start.alpha",
        "'high', not a number",
        "Write a number",
    ),
    "a number in quotes": (
        "name: a\nmode: dr2\nstart: {alpha: '0.9', beta: 0.1}\n",
        "3 start.alpha",
        "'0.9', not a number",
        "Write a number",
    ),
    "a truth value for a number": (
        "name: a\nmode: dr2\nstart: {alpha: yes, beta: 0.1}\n",
        "3 start.alpha",
        "True, not a number",
        "Write a number",
    ),
    "not a number": ("name: a\nmode: dr2\nstart: {alpha: .nan, beta: 0.1}\n", "3", "'.nan'", "quotes"),
    "a number for a mapping": (
        "name: a\nmode: dr2\nstart: 1\n",
        "3 start",
        "not a mapping",
        "Write a mapping",
    ),
    "text for a list": (VALID + "include: blocks\n", "4 include", "not a list", "Write a list"),
    "a number in a list of texts": (
        VALID + "include:\n  - blocks\n  - 3\n",
        "6 include.1",
        "not text",
        "text",
    ),
    "an empty list of what to take": (VALID + "include: []\n", "4 include", "is empty", "at least one"),
    "an empty name": ("name: ''\nmode: re2\n", "1 name", "is empty", "at least one"),
    "a pattern with a hole": (
        VALID + "exclude: [a..b]\n",
        "4 exclude",
        "empty path component",
        "Write patterns",
    ),
    "a broken iteration": (
        VALID + "end: {alpha: 0.3, beta: 0.7}\nschedule: {update_every: 1.5}\n",
        "5 schedule.update_every",
        "1.5, not a whole number",
        "whole number",
    ),
    "no iteration": (
        VALID + "end: {alpha: 0.3, beta: 0.7}\nschedule: {update_every: 0}\n",
        "5 schedule.update_every",
        "0, which is below 1",
        "at least 1",
    ),
    "two ends of a schedule": (
        VALID + "end: {alpha: 0.3, beta: 0.7}\nschedule:\n  until: {steps: 5, epochs: 2}\n",
        "6 schedule.until",
        "names steps and epochs",
        "one of: steps, epochs, fraction",
    ),
    "a share of more than everything": (
        VALID + "end: {alpha: 0.3, beta: 0.7}\nschedule:\n  until: {fraction: 1.5}\n",
        "6 schedule.until.fraction",
        "above 1",
        "at most 1",
    ),
    "a misspelt choice": (VALID + "arithmetic: exakt\n", "4 arithmetic", "is 'exakt'", "mean 'exact'"),
    "a misspelt mode": (
        "name: a\nmode: dr1\nstart: {alpha: 1, beta: 1}\n",
        "2 mode",
        "is 'dr1'",
        "mean 'dr2'",
    ),
    "a missing start": ("name: a\nmode: dr2\n", "1 start", "is missing", "start: {alpha: 0.9, beta: 0.1}"),
    "a misspelt auto": (
        "name: a\nmode: dr2\nstart: atuo\n",
        "3 start",
        "'atuo', neither auto nor a mapping",
        "Write `auto`",
    ),
    "a drift for a start that is given": (
        VALID + "max_drift: 0.1\n",
        "4 max_drift",
        "not searched for",
        "auto",
    ),
    "a drift of more than everything": (
        "name: a\nmode: dr2\nstart: auto\nmax_drift: 2\n",
        "4 max_drift",
        "2, which is above 1",
        "at most 1",
    ),
    "a search for the start of re2": (
        "name: a\nmode: re2\nstart: auto\n",
        "3 start",
        "no start to search for",
        "`mode: dr2`",
    ),
    "a missing coefficient": (
        "name: a\nmode: dr2\nstart:\n  alpha: 0.9\n",
        "3 start.beta",
        "is missing",
        "`beta: ...`",
    ),
    "a schedule without an end": (
        VALID + "schedule: {policy: linear}\n",
        "4 schedule",
        "no end point",
        "Add `end: {alpha: 0.3, beta: 0.7}`",
    ),
    "re2 with another start": (
        "name: a\nmode: re2\nstart: {alpha: 0.5, beta: 1}\n",
        "3 start",
        "mode re2 is alpha 0, beta 1, not alpha 0.5",
        "`mode: dr2`",
    ),
    "re2 with an end": (
        "name: a\nmode: re2\nend: {alpha: 0, beta: 1}\n",
        "3 end",
        "has no end",
        "Remove `end`",
    ),
    "a key twice": (VALID + "name: other\n", "4", "'name' stands there twice", "Remove one"),
    "a key that is a number": (VALID + "3: x\n", "4", "3 is not text", "quotes"),
    "a key that is a list": (VALID + "? [a]\n: x\n", "4", "not text", "quotes"),
    "an alias": (
        VALID + "description: &d x\nsource: *d\n",
        "4",
        "anchors and aliases",
        "Write the value out",
    ),
    "an object": (VALID + "source: !!python/object/apply:os.system [ls]\n", "4", "tag", "Remove the tag"),
    "a tag of one's own": (VALID + "source: !mine x\n", "4", "'!mine'", "Remove the tag"),
    "a merge": (VALID + "<<: {source: x}\n", "4", "'<<'", "quotes"),
    "a date": (VALID + "source: 2024-01-01\n", "4", "'2024-01-01'", "quotes"),
    "a time of day that YAML takes for a number": (VALID + "source: 1:30\n", "4", "'1:30'", "quotes"),
    "a second document": (VALID + "---\nname: b\n", "4", "more than one document", "Remove the ---"),
    "a quote without its end": (VALID + "source: 'x\n", "5", "not valid YAML", "quotes"),
    "a tab for indentation": (VALID + "schedule:\n\tpolicy: linear\n", "5", "not valid YAML", "indentation"),
    "a null character": (VALID + "source: a\0b\n", "4", "'\\x00' is not allowed", "Remove it"),
    "an escape beyond Unicode": ('name: "\\UFFFFFFFF"\n', "1", "out of range", "Check"),
    "a list": ("- a\n", "1", "not a mapping", "recipes show dr2-balanced"),
    "an empty file": ("", "1", "not a mapping", "recipes show dr2-balanced"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_with_line_and_key_and_fix(tmp_path: Path, case: str) -> None:
    text, place, problem, fix = MISTAKES[case]
    error = error_of(tmp_path, text)
    assert error.where == f"{tmp_path / 'mine.yaml'}:{place}"
    assert problem in error.what
    assert fix in (error.hint or "")


def test_several_mistakes_are_told_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = "name: 3\nmode: dr2\nstart: {alpha: 2, beta: 0.1}\nstrat: 1\n"
    error = error_of(tmp_path, text)
    assert "3 mistakes" in error.what
    lines = (error.where or "").splitlines()
    assert [line.removeprefix(f"{tmp_path / 'mine.yaml'}:")[0] for line in lines] == ["1", "3", "4"]
    assert len((error.hint or "").splitlines()) == 3


def test_a_wrong_value_of_any_length_is_shown_short(tmp_path: Path) -> None:
    assert len(str(error_of(tmp_path, VALID + f"arithmetic: {'x' * 10_000}\n"))) < 500


# Bombs

LAUGHS = "a: &a [x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
BOMBS = {
    "a billion laughs": (LAUGHS, "anchors and aliases"),
    "brackets without end": ("[" * 100_000, "deeper than"),
    "braces without end": ("{a: " * 100_000, "deeper than"),
    "dashes without end": ("- " * 100_000, "deeper than"),
    "question marks without end": ("? " * 100_000, "not text"),
    "a million values": ("[" + "1," * 400_000 + "1]", "more than 20,000 values"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(90_000)), "more than 20,000 values"),
    "a number of a million digits": ("a: " + "9" * 1_000_000, "neither a plain number"),
    "a float of a million digits": ("a: 1." + "9" * 1_000_000, "neither a plain number"),
    "a version of many digits": ("%YAML 1." + "1" * 5000 + "\n---\na: 1\n", "out of range"),
    "too many bytes": ("#" * (MAX_BYTES + 1), "larger than"),
    "too many bytes in few characters": ("# " + "\N{GRINNING FACE}" * (MAX_BYTES // 3), "larger than"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.timeout(20)
def test_a_bomb_is_refused_in_words_before_it_goes_off(tmp_path: Path, bomb: str) -> None:
    text, problem = BOMBS[bomb]
    assert problem in error_of(tmp_path, text).what


# The schema


def test_an_end_without_a_schedule_gets_the_linear_one() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "a",
            "mode": "dr2",
            "start": {"alpha": 0.9, "beta": 0.1},
            "end": {"alpha": 0.5, "beta": 0.5},
        }
    )
    assert recipe.schedule == Schedule()


def test_a_start_to_search_for_becomes_the_one_that_was_found_and_a_given_one_stays() -> None:
    balanced, paper = load_recipe("dr2-balanced"), load_recipe("dr2-paper")
    found = balanced.starting_at(0.98, 0.02)
    assert (found.start, found.max_drift) == (Coefficients(alpha=0.98, beta=0.02), None)
    assert Recipe.model_validate(parse_yaml(found.to_yaml()).data) == found
    assert Recipe.model_validate(parse_yaml(balanced.to_yaml()).data) == balanced
    assert paper.starting_at(0.98, 0.02) == paper


def test_mode_re2_alone_is_a_whole_recipe(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "name: a\nmode: re2\n")).start == Coefficients(alpha=0, beta=1)


def test_both_skips_in_full_may_be_asked_for(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, "name: drnet\nmode: dr2\nstart: {alpha: 1, beta: 1}\n"))
    assert recipe.start == Coefficients(alpha=1, beta=1)


def test_the_smallest_beta_that_can_be_stored_is_allowed() -> None:
    text = f"name: a\nmode: dr2\nstart: {{alpha: 1, beta: {SMALLEST_BETA!r}}}\n"
    recipe = Recipe.model_validate(parse_yaml(text).data)
    assert recipe.start.beta == SMALLEST_BETA


def test_a_recipe_cannot_be_changed_after_it_was_validated() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("re2").mode = "dr2"  # type: ignore[misc]


def test_the_schema_describes_every_field() -> None:
    schema = recipe_schema()
    objects = [schema, *schema["$defs"].values()]
    fields = [(name, field) for part in objects for name, field in part["properties"].items()]
    assert len(fields) > 15
    assert [name for name, field in fields if not field.get("description")] == []


def test_reading_recipes_imports_no_torch() -> None:
    code = (
        "import sys; from revsurgeon.recipes import load_recipe; load_recipe('re2');"
        "sys.exit(bool({'torch', 'timm', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Patterns


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**", "encoder.layer.3", True),
        ("**", "blocks", True),
        ("encoder", "encoder", True),
        ("encoder", "encoder.layer", False),
        ("encoder.*", "encoder.layer", True),
        ("encoder.*", "encoder.layer.3", False),
        ("encoder.**", "encoder.layer.3", True),
        ("encoder.**", "encoder", True),
        ("**.3", "encoder.layer.3", True),
        ("**.3", "3", True),
        ("**.layer.**", "a.layer.b.c", True),
        ("**.layer.**.c", "a.layer.c", True),
        ("**.layer.**.c", "a.layer.c.d", False),
        ("layer[12].*", "layer1.0", True),
        ("layer[12].*", "layer3.0", False),
        ("blocks.1?", "blocks.11", True),
        ("blocks.1*", "blocks.1", True),
        ("Blocks.*", "blocks.1", False),
    ],
)
def test_a_pattern_covers_whole_paths_component_by_component(pattern: str, path: str, matches: bool) -> None:
    assert path_matches(pattern, path) is matches


def test_many_double_stars_cost_no_more_than_few() -> None:
    assert not path_matches(".".join(["**", "a"] * 200), ".".join(["a"] * 199))
    assert path_matches(".".join(["**", "a"] * 200), ".".join(["a"] * 200))


def test_exclude_wins_over_include(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, VALID + "include: [blocks.*]\nexclude: [blocks.0, '**.head']\n"))
    assert [p for p in ("blocks.0", "blocks.1", "blocks.head", "neck.1") if recipe.selects(p)] == ["blocks.1"]


# Round trips

units = st.floats(0, 1)
betas = st.floats(SMALLEST_BETA, 1)
points = st.builds(Coefficients, alpha=units, beta=betas)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
untils = st.one_of(
    st.builds(Until, steps=st.integers(1, 10**12)),
    st.builds(Until, epochs=st.floats(0, 1e300, exclude_min=True)),
    st.builds(Until, fraction=st.floats(0, 1, exclude_min=True)),
)
schedules = st.builds(
    Schedule,
    policy=st.sampled_from(["linear", "exponential", "logarithmic"]),
    order=st.sampled_from(["simultaneous", "alpha-first", "beta-first"]),
    update_every=st.integers(1, 10**9),
    until=untils,
)
moving = st.builds(
    Recipe,
    name=texts,
    description=texts,
    source=st.none() | texts,
    mode=st.just("dr2"),
    granularity=st.sampled_from(["segment", "block"]),
    include=st.lists(texts.filter(lambda text: all(text.split("."))), min_size=1),
    merge=st.sampled_from(["auto", "normalized", "last"]),
    arithmetic=st.sampled_from(["auto", "float", "exact"]),
    start=points,
    end=points,
    schedule=schedules,
)


@given(moving)
def test_a_recipe_is_the_same_after_a_trip_through_yaml(recipe: Recipe) -> None:
    assert Recipe.model_validate(parse_yaml(recipe.to_yaml()).data) == recipe


def test_a_preset_is_the_same_after_a_trip_through_a_file(tmp_path: Path) -> None:
    for name in preset_names():
        recipe = load_recipe(name)
        assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe


plain_data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.from_regex(r"[-+]?[0-9_.:]{1,8}(e[-+]?[0-9]{1,3})?", fullmatch=True)
    | st.sampled_from(
        ["1e-3", "1e5", "yes", "null", "~", "<<", "=", "0x1f", "2024-01-01", "- a", "a: b", "# a"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=200), inner, max_size=4),
    max_leaves=12,
)


@given(plain_data)
def test_plain_data_is_the_same_after_a_trip_through_yaml(data: object) -> None:
    again = parse_yaml(dump_yaml(data)).data
    assert again == data
    assert repr(again) == repr(data)  # 1 is not 1.0, nor True


@given(st.text(max_size=300) | st.text("[]{}-?:,&*!|>'\"%@#a1 \n\t", max_size=60))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    line = 1
    try:
        parse_yaml(text)
    except YamlError as error:
        line = error.line
    assert 1 <= line <= len(text.splitlines()) + 2
