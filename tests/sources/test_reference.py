"""Reading a source's specification: which kind it is, and what cannot be one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from revsurgeon.errors import SourceError, UsageError
from revsurgeon.sources.reference import Reference, parse_reference


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("facebook/videomae-small", Reference("hub", "facebook/videomae-small")),
        ("facebook/videomae-small@v1.0", Reference("hub", "facebook/videomae-small", "v1.0")),
        ("facebook/videomae-small@refs/pr/3", Reference("hub", "facebook/videomae-small", "refs/pr/3")),
        ("hf:facebook/videomae-small@main", Reference("hub", "facebook/videomae-small", "main")),
        ("hf:gpt2", Reference("hub", "gpt2")),
        (
            "timm/vit_tiny_patch16_224.augreg_in21k",
            Reference("hub", "timm/vit_tiny_patch16_224.augreg_in21k"),
        ),
        ("timm:vit_small_patch16_224", Reference("timm", "vit_small_patch16_224")),
        ("timm:resnet50.a1_in1k", Reference("timm", "resnet50.a1_in1k")),
        ("torchvision:swin3d_t", Reference("torchvision", "swin3d_t")),
        (
            "transformers:audio-spectrogram-transformer",
            Reference("transformers", "audio-spectrogram-transformer"),
        ),
        ("python:package.module:factory", Reference("python", "package.module:factory")),
        ("python:module:Class.make", Reference("python", "module:Class.make")),
        ("demo", Reference("demo", "demo")),
    ],
)
def test_each_form_is_its_kind(spec, expected):
    assert parse_reference(spec) == expected


def test_a_path_that_exists_wins_over_a_hub_id(tmp_path):
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_reference("org/name").kind == "local"
    assert parse_reference("hf:org/name").kind == "hub"


def test_a_file_is_local(tmp_path):
    (tmp_path / "weights.safetensors").touch()
    assert parse_reference("weights.safetensors") == Reference("local", "weights.safetensors")


@pytest.mark.parametrize(
    "spec", ["./gone", "/gone/too", "../up", "gone.safetensors", "~/gone-for-sure", "a\\b"]
)
def test_a_path_that_does_not_exist_is_called_one(spec):
    with pytest.raises(SourceError, match="no file or directory"):
        parse_reference(spec)


@pytest.mark.parametrize(
    "spec", ["a/b/c", "org/..", "org/a..b", "org/", "org/na me", "hf:../../etc", "org/-x", "hf:"]
)
def test_what_cannot_be_a_hub_id_is_refused_before_anything_is_asked(spec):
    with pytest.raises(SourceError):
        parse_reference(spec)


@pytest.mark.parametrize("spec", ["org/name@", "org/name@../x", "org/name@a b"])
def test_what_cannot_be_a_revision_is_refused(spec):
    with pytest.raises(SourceError, match="revision"):
        parse_reference(spec)


@pytest.mark.parametrize("spec", ["", "   ", "two\nlines", "nul\0byte"])
def test_what_is_no_text_of_one_line_is_refused(spec):
    with pytest.raises(SourceError, match="empty or not one line"):
        parse_reference(spec)


@pytest.mark.parametrize(
    "spec", ["keras:vgg", "timm:", "timm:a/b", "torchvision:../x", "python:module", "python::f"]
)
def test_a_wrong_form_shows_the_right_one(spec):
    with pytest.raises(SourceError) as raised:
        parse_reference(spec)
    assert "Write " in raised.value.hint


def test_a_revision_given_apart_is_the_same():
    assert parse_reference("org/name", "v1") == parse_reference("org/name@v1")
    assert parse_reference("org/name@v1", "v1") == parse_reference("org/name@v1")


def test_two_revisions_contradict_each_other():
    with pytest.raises(UsageError, match="two revisions"):
        parse_reference("org/name@v1", "v2")


def test_a_revision_of_something_else_than_a_repository_is_refused():
    with pytest.raises(UsageError, match="only applies to a Hub repository"):
        parse_reference("timm:resnet18", "main")


def test_a_bare_model_name_is_answered_with_where_it_exists():
    with pytest.raises(SourceError) as raised:
        parse_reference("vit_small_patch16_224")
    assert raised.value.hint == "Did you mean timm:vit_small_patch16_224?"


def test_a_bare_name_that_two_libraries_know_names_both():
    with pytest.raises(SourceError) as raised:
        parse_reference("resnet50")
    assert "timm:resnet50" in raised.value.hint
    assert "torchvision:resnet50" in raised.value.hint


def test_a_misspelt_bare_name_is_answered_with_close_ones():
    with pytest.raises(SourceError) as raised:
        parse_reference("vit_smal_patch16_224")
    assert "timm:vit_small_patch16_224" in raised.value.hint


def test_a_bare_word_like_nothing_shows_the_forms():
    with pytest.raises(SourceError) as raised:
        parse_reference("qqqqzzzzqqqq")
    assert "ORG/NAME[@REVISION]" in raised.value.hint


def test_importing_the_package_of_sources_imports_no_heavy_library():
    heavy = "{'torch', 'timm', 'torchvision', 'transformers', 'huggingface_hub', 'safetensors'}"
    code = f"import sys, revsurgeon.sources; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
