"""The sweep over the model libraries: what converted still does, and its page says what its rows say."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.zoo import __main__ as program
from benchmarks.zoo.catalogue import Entry, entries
from benchmarks.zoo.children import rows
from benchmarks.zoo.examine import examine
from benchmarks.zoo.ratchet import worse
from benchmarks.zoo.results import Results
from benchmarks.zoo.table import PAGE, text

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


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_no_network_does_worse_than_what_is_written_down() -> None:
    found = rows(CATALOGUE.values(), jobs=2, limit=600.0, memory=16 << 30)
    complaints = [worse(RECORDED[row["key"]], row) for row in found if row["key"] in RECORDED]
    assert [c for c in complaints if c is not None] == []


def test_the_page_is_what_the_rows_say() -> None:
    assert PAGE.read_text() == text(list(RECORDED.values()))


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
