"""Ways of breaking an artifact: each is caught by the check that should, and it names the place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import revsurgeon as rs
from revsurgeon.artifact.header import encode_header, read_header
from revsurgeon.checks import CHECKS
from tests.checks.tampering import Data, Tensors, flip_a_bit, rename_a_tensor, tamper, write_file

Break = Callable[[Path], None]


def verify(path: Path, only: list[str] | None = None) -> rs.Report:
    return rs.verify(path, allow_python=True, device="cpu", seeds=1, only=only)


# -- weights -------------------------------------------------------------------------------------


def swap(first: str, second: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[first], tensors[second] = tensors[second], tensors[first]

    return change


def transpose(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].t().contiguous()

    return change


def put(name: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[3] = value

    return change


def nudge(name: str) -> Callable[[Tensors], None]:
    """The smallest change that a weight can have."""

    def change(tensors: Tensors) -> None:
        first = tensors[name].view(-1)
        first[0] = torch.nextafter(first[0], torch.tensor(torch.inf))

    return change


def permute_channels(tensors: Tensors) -> None:
    """Another network that computes the same: the branch's hidden channels in another order."""
    order = torch.arange(8).flip(0)
    for name in ("linear.weight", "linear.bias", "gamma"):
        tensors[f"early.1.{name}"] = tensors[f"early.1.{name}"][order]


def redraw(tensors: Tensors) -> None:
    generator = torch.Generator().manual_seed(7)
    tensors["late.0.mix.weight"] = torch.randn(12, 12, generator=generator)


def drop(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


def lower(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].bfloat16()

    return change


def of_tensors(change: Callable[[Tensors], None], **options: Any) -> Break:
    return lambda path: tamper(path, tensors=change, **options)


LINEAR = "early.1.linear.weight"

WEIGHTS: dict[str, tuple[Break, str, str | None]] = {
    "a flipped bit in the weights": (
        lambda path: flip_a_bit(path / "model.safetensors"),
        "integrity",
        r"wider\.bias",  # which is the last one in the file
    ),
    "a weight moved by one ulp": (of_tensors(nudge(LINEAR), rehash=False), "integrity", LINEAR),
    "a weight moved by one ulp, hashes made to agree": (of_tensors(nudge(LINEAR)), "provenance", LINEAR),
    "two tensors swapped": (
        of_tensors(swap("early.0.linear.weight", LINEAR), rehash=False),
        "integrity",
        r"early\.[01]\.linear\.weight",
    ),
    "two tensors swapped, hashes made to agree": (
        of_tensors(swap("early.0.linear.weight", LINEAR)),
        "provenance",
        r"early\.0\.linear\.weight",
    ),
    "a square weight transposed": (of_tensors(transpose(LINEAR), rehash=False), "integrity", LINEAR),
    "a square weight transposed, hashes made to agree": (of_tensors(transpose(LINEAR)), "provenance", LINEAR),
    "channels permuted so that the network computes the same": (
        of_tensors(permute_channels),
        "provenance",
        r"early\.1\.gamma|early\.1\.linear\..*",
    ),
    "a weight drawn anew": (of_tensors(redraw), "provenance", r"late\.0\.mix\.weight"),
    "a NaN": (of_tensors(put(LINEAR, torch.nan)), "integrity", LINEAR),
    "an infinity": (of_tensors(put("head.bias", torch.inf)), "integrity", "head.bias"),
    "a running variance that is negative infinity": (
        of_tensors(put("late.0.bn.running_var", -torch.inf)),
        "integrity",
        r"late\.0\.bn\.running_var",
    ),
    "a tensor missing from the file": (of_tensors(drop("head.bias"), rehash=False), "integrity", None),
    "a tensor missing from file and manifest": (of_tensors(drop("head.bias")), "integrity", "head.bias.*"),
    "a tensor in another type": (of_tensors(lower(LINEAR), rehash=False), "integrity", None),
    "a tensor in another type, manifest made to agree": (of_tensors(lower(LINEAR)), "provenance", LINEAR),
    "a tensor under another name": (
        lambda path: rename_a_tensor(path / "model.safetensors", "head.bias", "head.bia5"),
        "integrity",
        None,
    ),
    "one tensor more": (
        of_tensors(lambda tensors: tensors.update(extra=torch.zeros(3))),
        "integrity",
        "extra.*",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_what_they_were_are_caught(
    converted: Path, copy_of: Callable[[Path], Path], name: str
) -> None:
    change, check, place = WEIGHTS[name]
    assert_caught(copy_of(converted), change, check, place)


# -- files ---------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def grow(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0" * 8)


def break_the_header(path: Path) -> None:
    flip_a_bit(path / "model.safetensors", 9)


def lose_the_manifest(path: Path) -> None:
    file = path / "model.safetensors"
    header, raw = read_header(file), file.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    file.write_bytes(encode_header(header.tensors, {"format": "pt"}) + data)


def edit_yaml(old: str, new: str) -> Break:
    def change(path: Path) -> None:
        text = (path / "manifest.yaml").read_text()
        assert old in text
        (path / "manifest.yaml").write_text(text.replace(old, new, 1))

    return change


FILES: dict[str, Break] = {
    "a truncated file": truncate,
    "bytes behind the last tensor": grow,
    "a flipped bit in the header": break_the_header,
    "a header without its manifest": lose_the_manifest,
    "another beta in manifest.yaml alone": edit_yaml("beta: 0.1", "beta: 0.2"),
    "another arithmetic in manifest.yaml alone": edit_yaml("arithmetic: exact", "arithmetic: float"),
    "another hash in manifest.yaml alone": edit_yaml("sha256: '", "sha256: '0"),
    "a manifest.yaml that is no YAML": edit_yaml("chains:", "chains: ]"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_fail_integrity_and_the_rest_is_skipped(
    converted: Path, copy_of: Callable[[Path], Path], name: str
) -> None:
    path = copy_of(converted)
    FILES[name](path)
    report = verify(path)
    assert report.check("integrity").verdict == "failed"
    assert str(path) in str(report.check("integrity").place)
    others = {(check.verdict, check.reason) for check in report.checks[1:]}
    assert others == {("skipped", "the artifact cannot be read")}
    assert not report.passed


def other_shard(path: Path) -> None:
    """A shard whose manifest is another artifact's."""
    file = sorted(path.glob("model-*.safetensors"))[1]
    header, raw = read_header(file), file.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    text = header.metadata["revsurgeon"].replace('"beta":0.1', '"beta":0.2')
    file.write_bytes(encode_header(header.tensors, {**header.metadata, "revsurgeon": text}) + data)


def missing_shard(path: Path) -> None:
    sorted(path.glob("model-*.safetensors"))[1].unlink()


def wrong_index(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    names = sorted(file.name for file in path.glob("model-*.safetensors"))
    index.write_text(index.read_text().replace(names[0], names[1], 1))


@pytest.mark.parametrize("change", [other_shard, missing_shard, wrong_index], ids=lambda f: f.__name__)
def test_shards_that_do_not_belong_together_are_caught(
    sharded: Path, copy_of: Callable[[Path], Path], change: Break
) -> None:
    path = copy_of(sharded)
    assert verify(path, ["integrity"]).passed
    change(path)
    assert verify(path, ["integrity"]).check("integrity").verdict == "failed"


def test_a_config_that_is_not_the_manifests_is_caught(demo: Path, copy_of: Callable[[Path], Path]) -> None:
    path = copy_of(demo)
    config = path / "config.json"
    config.write_text(config.read_text().replace("{", '{ "dynamic_img_size": true,', 1))
    assert "config.json" in str(verify(path, ["integrity"]).check("integrity").place)


def test_a_source_that_changed_since_the_conversion_is_caught(tmp_path: Path, demo: Path) -> None:
    import shutil

    from revsurgeon.sources import demo as shipped  # type: ignore[attr-defined]  # a folder of data

    source = Path(shutil.copytree(next(iter(shipped.__path__)), tmp_path / "source"))
    path = rs.convert(str(source), output=tmp_path / "out", arithmetic="exact", verify=False)
    assert verify(path, ["provenance"]).passed
    from safetensors.torch import load_file

    state = load_file(source / "model.safetensors")
    state["blocks.2.mlp.fc1.bias"][0] += 1
    write_file(source / "model.safetensors", state, {"format": "pt"})
    result = verify(path, ["provenance"]).check("provenance")
    assert result.verdict == "failed"
    wrong = {m.place for m in result.measurements if not m.passed}
    assert wrong == {"model.safetensors", "blocks.2.mlp.fc1.bias"}


# -- the manifest --------------------------------------------------------------------------------


def without_record(data: Data) -> None:
    """As if nothing had been verified: what then is wrong must be found by running the network."""
    data["checks"] = {}


def setting(*keys: Any, to: Any, record: bool = False) -> Break:
    def change(data: Data) -> None:
        place = data
        for key in keys[:-1]:
            place = place[key]
        assert place[keys[-1]] != to
        place[keys[-1]] = to
        if not record:
            without_record(data)

    return lambda path: tamper(path, manifest=change)


def turned_round(data: Data) -> None:
    chain = data["chains"][0]
    chain["blocks"] = chain["blocks"][::-1]
    without_record(data)


def one_chain_less(data: Data) -> None:
    del data["chains"][1]


def one_chain_less_by_choice(data: Data) -> None:
    one_chain_less(data)
    without_record(data)


def scheduled(data: Data) -> None:
    """A schedule that stands at its end, with the coefficients of its start."""
    state = {"steps_done": 10, "end_step": 10, "start": [0.9, 0.1], "end": [0.3, 0.7]}
    data["schedule_state"] = {**state, "policy": "linear", "order": "simultaneous", "update_every": 1}
    without_record(data)


def of_manifest(change: Callable[[Data], None]) -> Break:
    return lambda path: tamper(path, manifest=change)


MANIFEST: dict[str, tuple[Break, str, str | None]] = {
    "another beta, header and YAML alike": (
        setting("coefficients", "beta", to=0.2, record=True),
        "integrity",
        "checks.verify",
    ),
    "another merge rule": (
        setting("chains", 0, "merge", to="normalized", record=True),
        "integrity",
        "checks.verify",
    ),
    "another arithmetic": (setting("arithmetic", to="float", record=True), "integrity", "checks.verify"),
    "another start in the recipe": (
        setting("recipe", "start", "beta", to=0.05, record=True),
        "integrity",
        "checks.verify",
    ),
    "a chain missing": (of_manifest(one_chain_less), "integrity", "checks.verify"),
    "coefficients that are not where the schedule stands": (
        of_manifest(scheduled),
        "integrity",
        "coefficients",
    ),
    "a build that makes another architecture": (
        setting("build", "entry", to="tests.models:residual_stack"),
        "integrity",
        None,
    ),
    "a block that does not exist": (
        setting("chains", 1, "blocks", to=["late.7"]),
        "integrity",
        None,
    ),
    "a grid too coarse for the streams": (
        setting("chains", 0, "grid_bits", to=6),
        "equations",
        r"early: its start: x_0",
    ),
    "a grid too fine for the streams": (setting("chains", 0, "grid_bits", to=48), "reversibility", None),
    "blocks in another order": (of_manifest(turned_round), "equations", None),
    "a number of segments that the block does not have": (
        setting("chains", 0, "segments", to=[2, 1]),
        "equivalence",
        None,
    ),
    "a stream that is not the block's input": (
        setting("chains", 0, "streams", to=["x", "features"]),
        "equivalence",
        None,
    ),
}


@pytest.mark.parametrize("name", MANIFEST)
def test_a_manifest_that_is_not_of_this_network_is_caught(
    converted: Path, copy_of: Callable[[Path], Path], name: str
) -> None:
    change, check, place = MANIFEST[name]
    assert_caught(copy_of(converted), change, check, place)


@pytest.mark.parametrize("check", ["reversibility", "gradients"])
def test_float_arithmetic_that_cannot_reverse_is_caught_and_told_what_to_do(
    demo: Path, copy_of: Callable[[Path], Path], check: str
) -> None:
    """Twelve segments at beta = .1, which are right one by one."""
    path = copy_of(demo)
    setting("arithmetic", to="float")(path)
    result = verify(path, [check]).check(check)
    assert result.verdict == "failed"
    assert "exact" in str(result.hint)
    assert re.fullmatch(r"blocks\.\d \(segment \d\)", str(result.place))
    single = [m for m in result.measurements if "one step back" in m.what]
    assert all(m.passed for m in single)


NOT_WRONG: dict[str, Break] = {
    "another beta": setting("coefficients", "beta", to=0.2),
    "another merge rule": setting("chains", 0, "merge", to="normalized"),
    "fewer chains": of_manifest(one_chain_less_by_choice),
}


@pytest.mark.parametrize("name", NOT_WRONG)
def test_what_makes_another_sound_network_passes_once_nothing_says_otherwise(
    converted: Path, copy_of: Callable[[Path], Path], name: str
) -> None:
    """Without a record of what was verified, these are artifacts that someone may have made on purpose.

    A converted network at another beta is a converted network. No check can know what was meant, so none
    may fail.
    """
    path = copy_of(converted)
    NOT_WRONG[name](path)
    assert verify(path, ["integrity", "provenance", "equivalence", "equations", "gradients"]).passed


# -- what all have in common ---------------------------------------------------------------------


def assert_caught(path: Path, change: Break, check: str, place: str | None) -> None:
    change(path)
    report = verify(path, [check])
    result = report.check(check)
    assert result.verdict == "failed", result
    assert not report.passed
    if place is not None:
        assert re.fullmatch(place, str(result.place)), result.place


def test_the_artifact_that_all_these_are_made_of_passes(converted: Path) -> None:
    report = verify(converted)
    assert {check.name: check.verdict for check in report.checks} == dict.fromkeys(CHECKS, "passed")
    assert report.passed
