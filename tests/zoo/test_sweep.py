"""The sweep over the model libraries: what converted still does, and its page says what its rows say."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import revsurgeon as rs
from benchmarks.zoo import __main__ as program
from benchmarks.zoo import papers
from benchmarks.zoo.catalogue import Entry, entries
from benchmarks.zoo.children import rows
from benchmarks.zoo.examine import examine, left_alone
from benchmarks.zoo.networks import make
from benchmarks.zoo.ratchet import worse
from benchmarks.zoo.results import Results
from benchmarks.zoo.table import PAGE, text
from revsurgeon.recipes import preset_names

RECORDED = Results().rows
CATALOGUE = {entry.key: entry for entry in entries()}

# Small networks, and what each of them stands for.
SAMPLE = {
    "timm:test_vit": "two residual modules a block",
    "timm:test_convnext": "layer scale and stochastic depth",
    "timm:test_mambaout": "gated branches",
    "timm:test_coatnet": "convolution and attention in one network",
    "timm:test_nfnet": "nothing but blocks that change the shape",
    "transformers:albert": "one block that is called several times",
    "transformers:bert": "post-norm, the addition in a submodule",
    "transformers:t5": "a position bias that one block gives to the others",
    "transformers:gemma3_text": "arguments that differ from layer to layer",
}

# And some that are inspected only, which takes a second each.
INSPECTED = {
    "timm:regnetx_002": "blocks that are attributes, not members of a list",
    "timm:pit_ti_224": "layouts that change between the stages",
    "timm:cs3darknet_focus_s": "chains inside a part of the channels",
    "timm:legacy_seresnet18": "blocks with a relu behind the addition",
    "timm:starnet_s050": "branches that are multiplied",
    "transformers:gptj": "attention and MLP side by side, a sum of three",
    "transformers:wavlm": "a position bias beside the stream, in a dataclass at the end",
    "transformers:mobilebert": "chains inside each block",
    "transformers:poolformer": "stages in containers of their own",
    "transformers:vitdet": "windows: blocks in which the layout changes and changes back",
    "transformers:clip_vision_model": "outputs that are a dataclass",
    "transformers:mbart": "an encoder and a decoder",
    "transformers:xlm": "a cache among the arguments",
    "transformers:ibert": "code that decides by data",
    "torchvision:squeezenet1_1": "concatenation",
    "torchvision:vgg11": "no residual structure",
}

# What is out of reach, and why.
LEFT_ALONE = {
    "concatenation": (
        *("timm:densenet121", "timm:dpn48b", "timm:ese_vovnet19b_slim_dw", "timm:inception_v4"),
        *("timm:nasnetalarge", "timm:pnasnet5large", "timm:rdnet_tiny", "timm:rexnet_100", "timm:selecsls42"),
        *("torchvision:densenet121", "torchvision:s3d", "torchvision:shufflenet_v2_x0_5"),
        "torchvision:squeezenet1_1",
    ),
    "no-residual": (
        *("timm:inception_v3", "timm:test_efficientnet", "timm:vgg11", "torchvision:alexnet"),
        *("torchvision:googlenet", "torchvision:inception_v3", "torchvision:vgg11"),
    ),
    "shape-changes": (
        *("timm:resnest14d", "timm:test_byobnet", "timm:test_nfnet", "torchvision:ssd300_vgg16"),
        "transformers:mobilenet_v1",
    ),
    "not-called": ("transformers:squeezebert",),
    "opaque-argument": ("transformers:flaubert", "transformers:xlm"),
    "untraceable": ("transformers:ibert",),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("key", SAMPLE)
def test_a_sample_of_networks_does_what_is_written_down(key: str) -> None:
    row = examine(CATALOGUE[key])
    assert row["status"] == RECORDED[key]["status"], row
    assert worse(RECORDED[key], row) is None


@pytest.mark.parametrize("key", INSPECTED)
def test_a_larger_sample_is_seen_as_it_is_written_down(key: str) -> None:
    subject = make(CATALOGUE[key])
    anatomy = rs.inspect(subject.network, subject.batches[0])
    before = RECORDED[key]
    assert [len(chain.segments) for chain in anatomy.chains] == before.get("segments", [])
    if not anatomy.chains:
        assert left_alone(anatomy)["reason"] == before["reason"]


def test_the_sample_is_of_25_networks() -> None:
    assert len(SAMPLE | INSPECTED) == 25


def test_what_is_left_alone_is_left_alone_for_these_reasons() -> None:
    found: dict[str, tuple[str, ...]] = {}
    for key, row in sorted(RECORDED.items()):
        if row["status"] == "left alone":
            found[row["reason"]] = (*found.get(row["reason"], ()), key)
    assert found == LEFT_ALONE


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_no_network_does_worse_than_what_is_written_down() -> None:
    found = rows(CATALOGUE.values(), jobs=2, limit=600.0, memory=16 << 30)
    complaints = [worse(RECORDED[row["key"]], row) for row in found if row["key"] in RECORDED]
    assert [c for c in complaints if c is not None] == []


def test_the_page_is_what_the_rows_say() -> None:
    assert PAGE.read_text() == text(list(RECORDED.values()), papers.recorded())


def test_every_system_of_the_papers_has_a_row_and_a_recipe() -> None:
    assert [row["name"] for row in papers.recorded()] == [system.name for system in papers.SYSTEMS]
    assert all(system.recipe in preset_names() for system in papers.SYSTEMS)


@pytest.mark.slow
@pytest.mark.parametrize("system", papers.SYSTEMS, ids=lambda system: system.recipe)
def test_the_papers_systems_have_the_chains_that_are_written_down(system: papers.System) -> None:
    assert papers.row(system) in papers.recorded()


def test_every_network_of_the_catalogue_has_a_row_and_none_failed() -> None:
    assert CATALOGUE.keys() == RECORDED.keys()
    assert [key for key, row in RECORDED.items() if row["status"] == "failed"] == []


CONVERTED = {"key": "timm:a", "status": "converted", "segments": [2, 4]}


@pytest.mark.parametrize(
    "now",
    [
        {"status": "left alone", "reason": "untraceable", "detail": "..."},
        {"status": "failed", "detail": "..."},
        {"status": "not tried", "detail": "..."},
        {"status": "converted", "segments": [2, 3]},
        {"status": "converted", "segments": [3, 3]},
    ],
)
def test_the_ratchet_complains_when_a_network_does_worse(now: dict[str, Any]) -> None:
    assert worse(CONVERTED, {"key": "timm:a", **now}) is not None


def test_the_ratchet_lets_a_network_do_better_or_the_same() -> None:
    assert worse(CONVERTED, CONVERTED) is None
    assert worse(CONVERTED, {**CONVERTED, "segments": [2, 4, 1]}) is None
    assert worse({**CONVERTED, "status": "left alone"}, CONVERTED) is None


def test_the_ratchet_complains_when_a_network_is_left_alone_for_another_reason() -> None:
    before = {"key": "timm:a", "status": "left alone", "reason": "concatenation", "detail": "..."}
    assert worse(before, before) is None
    assert worse(before, {**before, "reason": "untraceable"}) is not None


def test_rows_of_another_run_are_taken_unless_they_are_worse(tmp_path: Path) -> None:
    keys = sorted(CATALOGUE)[:3]
    here, there = Results(tmp_path / "here.jsonl"), Results(tmp_path / "there.jsonl")
    for key, now in zip(keys, ([2, 5], [2, 3], None), strict=True):
        here.rows[key] = {**CONVERTED, "key": key}
        there.rows[key] = {**CONVERTED, "key": key, "segments": now}
    there.rows[keys[2]] |= {"status": "not tried", "detail": "stopped after 9 s"}
    here.tidy(keys)
    there.tidy(keys)
    assert program.main(["--merge", str(there.path), "--results", str(here.path)]) == 1
    assert [row["segments"] for row in Results(here.path).rows.values()] == [[2, 5], [2, 4], [2, 4]]


def _sleeps(connection: Any, entry: Entry, memory: int) -> None:
    time.sleep(60)


def _dies(connection: Any, entry: Entry, memory: int) -> None:
    raise SystemExit(3)


def _answers(connection: Any, entry: Entry, memory: int) -> None:
    connection.send({"key": entry.key, "library": entry.library, "status": "left alone", "seconds": 0.0})


ENTRY = Entry("timm", "anything", "family", "image")


def test_a_network_that_takes_too_long_or_kills_its_process_is_one_row() -> None:
    (late,) = rows([ENTRY], jobs=1, limit=0.2, memory=1 << 40, target=_sleeps)
    (dead,) = rows([ENTRY], jobs=1, limit=60, memory=1 << 40, target=_dies)
    assert (late["status"], late["detail"]) == ("not tried", "stopped after 0 s")
    assert (dead["status"], dead["detail"]) == ("failed", "its process ended with 3")


def test_a_run_goes_on_where_another_one_ended(tmp_path: Path) -> None:
    two = [dataclasses.replace(ENTRY, name=name) for name in ("a", "b")]
    results = Results(tmp_path / "rows.jsonl")
    for row in rows(two[:1], jobs=1, limit=60, memory=1 << 40, target=_answers):
        results.add(row)
    again = Results(tmp_path / "rows.jsonl")
    assert [again.is_done(e.key, e.library) for e in two] == [True, False]
    again.rows["timm:a"]["versions"]["timm"] = "0"
    assert not again.is_done("timm:a", "timm")


def test_a_pattern_that_matches_nothing_runs_nothing(tmp_path: Path) -> None:
    assert program.main(["--match", "nothing", "--results", str(tmp_path / "rows.jsonl")]) == 0
