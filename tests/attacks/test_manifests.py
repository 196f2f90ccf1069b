"""Manifests that ask for what they should not get: code, files elsewhere, downloads, all of the memory."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import revsurgeon as rs
from revsurgeon.errors import ArtifactError
from tests.attacks.artifacts import Change, copy_of, with_manifest
from tests.attacks.conftest import Code
from tests.attacks.sealed import assert_refused, command, sealed


def builds(library: str, entry: Any, **arguments: Any) -> Change:
    return lambda manifest: manifest.update(
        build={"library": library, "entry": entry, "arguments": arguments}, config=None
    )


def bert(**settings: Any) -> Change:
    config = {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    return builds("transformers", "BertModel", config={**config, **settings}, dtype="float32")


VIT = "vit_tiny_patch16_224"

BUILDS: dict[str, Change] = {
    "a function of the user's": builds("python", "os:abort"),
    "a function in the working directory": builds("python", "evil:make"),
    "a library of no name": builds("os", "system"),
    "no text as a name": builds("timm", ["os"]),
    "timm: a repository of the Hub": builds("timm", "hf-hub:someone/evil"),
    "timm: a directory": builds("timm", "local-dir:/etc"),
    "timm: a path": builds("timm", "../../evil"),
    "timm: a checkpoint to load": builds("timm", VIT, model_args={"checkpoint_path": "evil.pth"}),
    "timm: an overlay": builds("timm", VIT, model_args={"pretrained_cfg_overlay": {"file": "evil.pth"}}),
    "timm: pretrained": builds("timm", VIT, model_args={"pretrained": True}),
    "timm: too large": builds("timm", VIT, model_args={"embed_dim": 2**40}),
    "timm: too deep": builds("timm", VIT, model_args={"depth": 10**9}),
    "timm: a size below 0": builds("timm", VIT, model_args={"embed_dim": -3}),
    "timm: no heads": builds("timm", VIT, model_args={"num_heads": 0}),
    "timm: arguments that are none": builds("timm", VIT, model_args=[1, 2]),
    "torchvision: no model": builds("torchvision", "../resnet18"),
    "torchvision: pretrained": builds("torchvision", "resnet18", pretrained=True),
    "torchvision: a layer that is text": builds("torchvision", "resnet18", norm_layer="os.system"),
    "torchvision: too many classes": builds("torchvision", "resnet18", num_classes=2**50),
    "torchvision: weights that are a list": builds("torchvision", "resnet18", weights=[1]),
    "transformers: no network": builds("transformers", "AutoModel", config={"model_type": "bert"}),
    "transformers: no class": builds("transformers", "logging", config={"model_type": "bert"}),
    "transformers: no config": builds("transformers", "BertModel"),
    "transformers: code of the source": builds(
        "transformers", "Evil", config={"auto_map": {"AutoModel": "evil.Evil"}}, remote_code="."
    ),
    "transformers: kernels": bert(attn_implementation="someone/evil"),
    "transformers: kernels by the inner name": bert(_attn_implementation="kernels-community/flash-attn"),
    "transformers: timm's checkpoint": builds(
        "transformers",
        "TimmWrapperModel",
        config={
            "model_type": "timm_wrapper",
            "architecture": VIT,
            "num_classes": 2,
            "model_args": {"checkpoint_path": "evil.pth"},
        },
        dtype="float32",
    ),
    "transformers: timm's Hub": builds(
        "transformers",
        "TimmWrapperModel",
        config={"model_type": "timm_wrapper", "architecture": "hf-hub:someone/evil", "num_classes": 2},
        dtype="float32",
    ),
    "transformers: a dtype that is a function": builds(
        "transformers", "BertModel", config={"model_type": "bert", "num_hidden_layers": 1}, dtype="load"
    ),
    "transformers: too large": bert(hidden_size=2**36),
    "transformers: too deep": bert(num_hidden_layers=10**9),
    "transformers: a size below 0": bert(hidden_size=-4),
    "transformers: no heads": bert(num_attention_heads=0),
    "transformers: another network": bert(),
}


@pytest.mark.parametrize("case", BUILDS)
def test_a_build_that_reaches_out_is_refused(
    demo: Path, tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """A pickle and a module lie where the names in the manifest lead."""
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"weight": Code(proof)}, buffer)
    (tmp_path / "evil.pth").write_bytes(buffer.getvalue())
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(proof)!r})\n\n\ndef make():\n    pass\n")
    path = with_manifest(demo, tmp_path / "hostile", BUILDS[case])
    assert_refused(lambda: rs.load(path), codes=(4 if "another network" in case else 2,))
    assert not proof.exists()
    assert "evil" not in sys.modules


def test_a_network_larger_than_its_files_is_refused_by_its_shapes_and_has_no_memory_first(
    demo: Path, tmp_path: Path
) -> None:
    """39 GB of weights in 12 layers, of which 2 GiB could be had."""
    wide = builds("timm", VIT, model_args={"depth": 12, "embed_dim": 8192, "num_heads": 64})
    path = with_manifest(demo, tmp_path / "hostile", wide)
    for text in assert_refused(lambda: rs.load(path), lambda: verified(path)):
        assert "do not fit" in text
        assert "shape [40] in the artifact, [8192] in the network" in text


def verified(path: Path) -> None:
    """Verify an artifact, with what its report says of the files as an error."""
    integrity = rs.verify(path, offline=True, seeds=1).checks[0]
    if integrity.verdict != "passed":
        raise ArtifactError(str(integrity.reason))


def test_a_factory_runs_once_the_user_allows_it(
    demo: Path, tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side of the refusal: what it protects from would have happened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(proof)!r})\n\n\ndef make():\n    pass\n")
    path = with_manifest(demo, tmp_path / "hostile", builds("python", "evil:make"))
    (outcome,) = sealed(lambda: rs.load(path, allow_python=True), may_write_below=tmp_path)
    assert proof.exists()
    assert outcome.error == "SourceError"


def inputs(**entry: Any) -> Change:
    usual = {"shape": [1, 1, 8, 8], "dtype": "float32", "kind": "normal"}
    return lambda manifest: manifest["inputs"]["entries"].update({"0": {**usual, **entry}})


MANIFESTS: dict[str, Change] = {
    "no version": lambda manifest: manifest.pop("format_version"),
    "a version of the future": lambda manifest: manifest.update(format_version=2**70),
    "a version that is text": lambda manifest: manifest.update(format_version="1; rm -rf /"),
    "an unknown key": lambda manifest: manifest.update(hooks=["os.system"]),
    "chains that are text": lambda manifest: manifest.update(chains="all"),
    "no chains": lambda manifest: manifest.update(chains=[]),
    "a block that is not there": lambda manifest: manifest["chains"][0]["blocks"].__setitem__(0, "../x"),
    "a block that is an attribute": lambda manifest: manifest["chains"][0]["blocks"].__setitem__(
        0, "__class__"
    ),
    "endless chunks": lambda manifest: manifest["chains"][0].update(chunks=2**70),
    "endless segments": lambda manifest: manifest["chains"][0]["segments"].__setitem__(0, 2**70),
    "a beta that overflows": lambda manifest: manifest["coefficients"].update(beta=1e-300),
    "a beta that is text": lambda manifest: manifest["coefficients"].update(beta="0.1"),
    "files elsewhere": lambda manifest: manifest.update(files=["../../etc/passwd"]),
    "tensors that are none": lambda manifest: manifest.update(tensors={"a": None}),
    "a shape that is none": lambda manifest: next(iter(manifest["tensors"].values())).update(shape="8x8"),
    "a recipe with a schedule of text": lambda manifest: manifest["recipe"].update(schedule="linear"),
    "checks for ever": lambda manifest: manifest["recipe"].update(checks={"seeds": 10**9, "skip": []}),
    "a build that is a list": lambda manifest: manifest.update(build=[]),
    "a build that is empty": lambda manifest: manifest.update(build={}),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_of_another_form_is_refused(demo: Path, tmp_path: Path, case: str) -> None:
    path = with_manifest(demo, tmp_path / "hostile", MANIFESTS[case])
    assert_refused(lambda: rs.load(path), codes=(4 if "a block" in case else 2,))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda manifest: manifest.update(inputs={"entries": 5}), id="no entries"),
        pytest.param(
            lambda manifest: manifest.update(inputs={"entries": {}, "parameters": 3}), id="no names"
        ),
        pytest.param(inputs(shape=[1, 2**40]), id="too large"),
        pytest.param(inputs(shape=[1, -8]), id="below 0"),
        pytest.param(inputs(shape=[]), id="no batch"),
        pytest.param(inputs(shape=["os"]), id="text"),
        pytest.param(inputs(dtype="load"), id="a function"),
        pytest.param(inputs(kind="exec"), id="an unknown kind"),
        pytest.param(inputs(kind="tokens", dtype="int64", high=10**12, avoid=[]), id="too many tokens"),
        pytest.param(inputs(kind="tokens", dtype="int64", high=8, avoid=["x"]), id="tokens of text"),
        pytest.param(inputs(command="rm"), id="an unknown field"),
    ],
)
def test_inputs_that_nobody_could_make_are_refused(demo: Path, tmp_path: Path, change: Change) -> None:
    path = with_manifest(demo, tmp_path / "hostile", change)
    (text,) = assert_refused(lambda: rs.verify(path, offline=True, seeds=1))
    assert "what its network takes" in text


BOMBS = {
    "aliases": "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n",
    "a merge key": "a: &a {x: 1}\nb: {<<: *a}\n",
    "a tag that executes": '!!python/object/apply:os.system ["touch executed"]\n',
    "a tag that imports": "!!python/name:os.system\n",
    "depth": "[" * 100_000,
    "indented depth": "".join(" " * level + "a:\n" for level in range(2000)),
    "an endless number": "x: " + "9" * 100_000 + "\n",
    "a number in base 60": "x: " + "1:" * 1000 + "1\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "a byte that is no character": "a: \x00\n",
    "a key without end": "name: x\n? " + "k" * 50_000 + "\n: 1\n",
    "a key twice": "name: a\nname: b\n",
    "values without end": "x: [" + "1, " * 3_000_000 + "]\n",
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_of_yaml_is_refused_as_a_recipe_and_as_a_manifest(
    demo: Path, tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "bomb.yaml"
    recipe.write_text(BOMBS[case])
    path = copy_of(demo, tmp_path / "hostile")
    (path / "manifest.yaml").write_text(BOMBS[case])
    validated, _, loaded = assert_refused(
        command("recipes", "validate", str(recipe)),
        lambda: rs.convert("demo", recipe=recipe, output=tmp_path / "out"),
        lambda: rs.load(path),
    )
    assert "RecipeError" in validated
    assert len(validated) < 5000
    assert "anifest" in loaded
    assert not proof.exists()


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "/etc/shadow", "..", "/dev/zero", "dr2\0", "$(id)", ""]
)
def test_a_recipe_is_never_found_where_it_is_none(tmp_path: Path, name: str) -> None:
    assert_refused(lambda: rs.convert("demo", recipe=name, output=tmp_path / "out"))


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "..", "a; rm -rf /", "$(id)", "`id`", "a/../../b", "../../tmp"]
)
def test_names_in_a_manifest_do_not_become_paths(demo: Path, tmp_path: Path, name: str) -> None:
    """They are saved again as text."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["source"].update(spec=name, repo_id=name)
        manifest["recipe"].update(name=name, source=name)

    path = with_manifest(demo, tmp_path / "hostile", change)
    (tmp_path / "below").mkdir()
    (outcome,) = sealed(
        lambda: rs.save(rs.load(path), tmp_path / "below" / "out"), may_write_below=tmp_path / "below"
    )
    assert (outcome.error, outcome.forbidden) == ("", [])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["below", "hostile"]
    assert [file.name for file in (tmp_path / "below").iterdir()] == ["out"]
