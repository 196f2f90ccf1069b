"""A quick sample of the fuzzer; `python -m tests.attacks.fuzz` tries as many inputs as one likes."""

from __future__ import annotations

import random
import signal
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revsurgeon.artifact import Manifest
from revsurgeon.errors import ArtifactError, RecipeError
from revsurgeon.recipes import load_recipe
from revsurgeon.recipes.strict_yaml import dump_yaml
from tests.artifact.processes import exit_code, fork
from tests.attacks.fuzz import Targets, broken, fuzz, too_slow
from tests.attacks.mutations import as_json
from tests.attacks.small_artifacts import write_small

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def test_no_wrong_file_breaks_a_promise(tmp_path: Path) -> None:
    targets = Targets(tmp_path, *write_small(tmp_path / "sound"))

    def body() -> None:
        signal.signal(signal.SIGVTALRM, too_slow)
        assert broken(fuzz(targets, count=800, seed=1)) == 0

    assert exit_code(fork(body)) == 0


def test_the_fuzzer_would_notice(tmp_path: Path) -> None:
    """A reader that raises something else, one that is slow, and one that writes elsewhere."""
    targets = Targets(tmp_path / "inside", *write_small(tmp_path / "sound"))
    (tmp_path / "inside").mkdir()

    def slow(raw: bytes) -> None:
        while True:
            pass

    def writes(raw: bytes) -> None:
        (tmp_path / "outside").write_bytes(raw)

    def raises(raw: bytes) -> None:
        raise KeyError("x")

    def body() -> None:
        signal.signal(signal.SIGVTALRM, too_slow)
        for read in (slow, writes, raises):
            targets.all = lambda read=read: {"x": (1, lambda chance: b"", read)}
            assert broken(fuzz(targets, count=1, seed=0)) == 1

    assert exit_code(fork(body)) == 0


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, 2**32), value=values)
def test_any_value_at_any_place_is_taken_or_refused_in_words(place: int, value: object) -> None:
    """hypothesis finds the values, of which the fuzzer has a fixed set."""
    data = _with(_MANIFEST, value, random.Random(place))
    with suppress(ArtifactError):
        Manifest.from_json(as_json(data).decode(), "header")


def _with(data: object, value: object, chance: random.Random) -> object:
    """Plain data with a value put somewhere."""
    if not isinstance(data, dict) or not data:
        return value
    key = chance.choice(sorted(data))
    inner = data[key]
    return {
        **data,
        key: _with(inner, value, chance) if isinstance(inner, dict) and chance.random() < 0.7 else value,
    }


_MANIFEST = {
    "format_version": 1,
    "revsurgeon": "0.1.0",
    "source": {"spec": "demo"},
    "build": {"library": "timm"},
    "inputs": {},
    "recipe": load_recipe("re2").model_dump(mode="json"),
    "chains": [
        {
            "name": "blocks",
            "blocks": ["blocks.0"],
            "segments": [2],
            "streams": ["x"],
            "outputs": [0],
            "merge": "last",
            "copy_output": False,
        }
    ],
    "coefficients": {"alpha": 0.0, "beta": 1.0},
    "arithmetic": "float",
}


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, 2**32), value=values)
def test_any_value_in_a_recipe_is_taken_or_refused_in_words(
    tmp_path: Path, place: int, value: object
) -> None:
    data = _with(load_recipe("dr2-paper").model_dump(mode="json"), value, random.Random(place))
    file = tmp_path / "recipe.yaml"
    file.write_bytes(dump_yaml(data).encode("utf-8", "surrogatepass"))
    with suppress(RecipeError):
        load_recipe(file)
