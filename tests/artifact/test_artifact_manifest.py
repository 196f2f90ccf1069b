"""The manifest says the same as JSON, as YAML and in memory."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revsurgeon.artifact import ChainRecord, Manifest, TensorRecord
from revsurgeon.errors import ArtifactError
from revsurgeon.recipes import SMALLEST_BETA, Coefficients, load_recipe

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=3)
units = st.floats(0, 1)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
chains = st.lists(st.tuples(texts, st.integers(1, 9)), min_size=1, max_size=3).map(
    lambda blocks: ChainRecord(
        name="blocks",
        blocks=[name for name, _ in blocks],
        segments=[count for _, count in blocks],
        streams=["x" for _ in blocks],
        outputs=[0 for _ in blocks],
        merge="last",
        copy_output=True,
    )
)
manifests = st.builds(
    Manifest,
    revsurgeon=texts,
    source=objects,
    build=objects,
    config=st.none() | texts | st.just('{\n  "a": 1,\n\n  "b": "x"\n}\n'),
    inputs=objects,
    recipe=st.sampled_from([load_recipe("re2"), load_recipe("dr2-paper")]),
    chains=st.lists(chains, min_size=1, max_size=2),
    coefficients=st.builds(Coefficients, alpha=units, beta=st.just(0.0) | st.floats(SMALLEST_BETA, 1)),
    arithmetic=st.sampled_from(["float", "exact"]),
    schedule_state=st.none() | objects,
    checks=objects,
    files=st.lists(texts, max_size=2),
    tensors=st.dictionaries(
        texts,
        st.builds(
            TensorRecord,
            dtype=st.sampled_from(["F32", "BF16"]),
            shape=st.lists(st.integers(0, 2**40), max_size=4),
            sha256=hashes,
        ),
        max_size=3,
    ),
)


@given(manifests)
def test_a_manifest_is_the_same_after_a_trip_through_json(manifest: Manifest) -> None:
    again = Manifest.from_json(manifest.to_json(), "here")
    assert again == manifest
    assert again.to_json() == manifest.to_json()


@given(manifests)
def test_a_manifest_is_the_same_after_a_trip_through_yaml(manifest: Manifest) -> None:
    again = Manifest.from_yaml(manifest.to_yaml(), "here")
    assert again == manifest
    assert again.to_json() == manifest.to_json()


@given(manifests)
def test_the_json_is_one_line_of_ascii(manifest: Manifest) -> None:
    text = manifest.to_json()
    assert text.isascii()
    assert "\n" not in text


def test_what_json_cannot_tell_apart_is_made_the_same_from_the_start(manifest: Manifest) -> None:
    # A tuple would come back as a list, and the manifest read would not equal the one written.
    arguments = manifest.build["arguments"]
    assert isinstance(arguments, dict)
    assert arguments["img_size"] == [32, 32]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"bytes"])
def test_a_value_that_json_does_not_have_is_refused_when_the_manifest_is_made(
    manifest: Manifest, value: object
) -> None:
    data = manifest.model_dump() | {"checks": {"figure": value}}
    with pytest.raises(ValueError, match=r"checks"):
        Manifest.model_validate(data)


def test_a_chain_has_a_count_of_segments_for_each_block() -> None:
    whole = {"name": "a", "blocks": ["a.0", "a.1"], "merge": "last", "copy_output": False}
    for name in ("segments", "streams", "outputs"):
        lists = {"segments": [2, 2], "streams": ["x", "x"], "outputs": [0, 0]}
        ChainRecord(**whole, **lists)
        with pytest.raises(ValueError, match=f"2 blocks but 1 entries in {name}"):
            ChainRecord(**whole, **{**lists, name: lists[name][:1]})


def test_the_yaml_has_one_line_a_tensor_and_the_config_as_it_is(manifest: Manifest) -> None:
    record = TensorRecord(dtype="F32", shape=[2, 3], sha256="0" * 64)
    config = '{\n  "layers": 2\n}\n'
    text = manifest.model_copy(update={"tensors": {"a.b": record}, "config": config}).to_yaml()
    assert f'  "a.b": {{dtype: "F32", shape: [2, 3], sha256: \'{"0" * 64}\'}}\n' in text
    assert 'config: |\n  {\n    "layers": 2\n  }\n' in text


@pytest.mark.parametrize(
    ("change", "problem", "hint"),
    [
        ({"format_version": 2}, "format is 2", "pip install --upgrade revsurgeon"),
        ({"format_version": 0}, "format is 0", "Convert"),
        ({"format_version": True}, "format is True", "Convert"),
        ({"format_version": "1"}, "format is 1", "Convert"),
        ({"format_version": None}, "format is None", "Convert"),
        ({"surprise": 1}, "surprise: Extra", "Convert"),
        ({"arithmetic": "bfloat"}, "arithmetic: Input should be", "Convert"),
        ({"coefficients": {"alpha": 2, "beta": 0}}, "coefficients.alpha", "Convert"),
        (
            {"tensors": {"a": {"dtype": "F32", "shape": [-1], "sha256": "0" * 64}}},
            "tensors.a.shape",
            "Convert",
        ),
        ({"tensors": {"a": {"dtype": "F32", "shape": [1], "sha256": "zz"}}}, "tensors.a.sha256", "Convert"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused_in_words(
    manifest: Manifest, change: dict[str, object], problem: str, hint: str
) -> None:
    text = json.dumps(json.loads(manifest.to_json()) | change)
    with pytest.raises(ArtifactError) as caught:
        Manifest.from_json(text, "weights")
    assert problem in str(caught.value)
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "not a mapping"),
        ("", "cannot be read"),
        ('{"a": 1, "a": 2}', "'a' stands there twice"),
        ('{"format_version": NaN}', "NaN is not a number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format_version": ' + "9" * 10_000 + "}", "cannot be read"),
        ("[" + "[]," * 1_000_000 + "[]]", "more than 1,000,000 values"),
        (" " * (64 << 20) + "{}", "larger than 64 MiB"),
    ],
)
def test_json_that_is_malformed_or_a_bomb_is_refused_in_words(text: str, problem: str) -> None:
    with pytest.raises(ArtifactError, match=problem):
        Manifest.from_json(text, "weights")


def test_a_yaml_bomb_is_refused_in_words() -> None:
    with pytest.raises(ArtifactError, match=r"anchors and aliases(.|\n)*manifest.yaml:1"):
        Manifest.from_yaml("a: &a [x]\nb: [*a, *a]\n", "manifest.yaml")
