"""The files of a map: they agree, they read back, and a map that was stopped goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import revsurgeon as rs
from revsurgeon.errormap import ErrorMap
from revsurgeon.errormap.comparison import METRICS
from revsurgeon.errormap.results import continued, read_results, write_results
from revsurgeon.errors import UsageError
from tests.errormap.synthetic import error_map
from tests.errormap.test_map import small


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[ErrorMap, Path]:
    network, inputs = small()
    stem = tmp_path_factory.mktemp("map") / "small"
    return rs.errmap(network, example_inputs=inputs, grid=3, arithmetic="both", output=stem), stem


def test_a_map_reads_back_equal(measured: tuple[ErrorMap, Path]) -> None:
    found, stem = measured
    again = read_results(stem)
    assert again is not None
    assert again.grid == found.grid
    assert again.to_dict() == found.to_dict() == json.loads(stem.with_name("small.json").read_text())


def test_the_csv_has_the_numbers_of_the_json_all_of_them(measured: tuple[ErrorMap, Path]) -> None:
    _, stem = measured
    document = json.loads(stem.with_name("small.json").read_text())
    with stem.with_name("small.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))

    def number(text: str) -> float | None:
        return float(text) if text else None

    rest = list(lines)
    for point in document["points"]:
        place = (point["alpha"], point["beta"])
        memory = point["exact_memory"] or {"bits": None, "bytes": None}
        here = [line for line in rest if (float(line["alpha"]), float(line["beta"])) == place]
        for line in here:
            assert float(line["drift"]) == point["drift"]
            assert (number(line["bits"]), number(line["exact_bytes"])) == (memory["bits"], memory["bytes"])
        if place[1] == 0.0:
            assert [line["arithmetic"] for line in here] == [""]
        for arithmetic in ("float", "exact"):
            if arithmetic in point:
                whole, chains = point[arithmetic], point[arithmetic]["chains"]
                for name, measures in [("", whole), *((c["name"], c) for c in chains)]:
                    (line,) = (x for x in here if (x["arithmetic"], x["chain"]) == (arithmetic, name))
                    assert [number(line[m]) for m in METRICS] == [measures[m] for m in METRICS]
        rest = [line for line in rest if line not in here]
    assert rest == []


def test_a_map_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    network, inputs = small()
    whole = rs.errmap(network, example_inputs=inputs, grid=4)

    class Stopped(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise Stopped

    with pytest.raises(Stopped):
        rs.errmap(network, example_inputs=inputs, grid=4, output=tmp_path / "map", progress=stop)
    partial = read_results(tmp_path / "map")
    assert partial is not None
    assert len(partial.grid) == 7
    document = json.loads((tmp_path / "map.json").read_text())
    assert (document["complete"], document["recommended"]) == (False, None)
    told: list[int] = []
    again = rs.errmap(
        network,
        example_inputs=inputs,
        grid=4,
        output=tmp_path / "map",
        resume=True,
        progress=lambda done, total: told.append(done),
    )
    assert told == [*range(7, 17), 16]
    assert again.to_dict() == whole.to_dict()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"grid": 3}, "alphas"),
        ({"arithmetic": "exact"}, "arithmetics"),
        ({"example_inputs": None}, "inputs"),
        ({"weights": True}, "weights_sha256"),
    ],
)
def test_a_map_of_something_else_is_not_gone_on_with(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    network, inputs = small()
    arguments: dict[str, Any] = {"example_inputs": inputs, "grid": 2, "output": tmp_path / "map"}
    rs.errmap(network, **arguments)
    before = (tmp_path / "map.json").read_bytes()
    if change.pop("weights", False):
        network.head.weight.data.mul_(2)
    if "example_inputs" in change:
        change["example_inputs"] = (inputs[0] * 2,)
    with pytest.raises(UsageError, match="measured differently") as caught:
        rs.errmap(network, **{**arguments, "resume": True, **change})
    assert named in (caught.value.where or "")
    assert (tmp_path / "map.json").read_bytes() == before


def test_a_map_that_is_there_is_only_replaced_when_one_says_so(tmp_path: Path) -> None:
    found = error_map(3)
    write_results(found, tmp_path / "map")
    with pytest.raises(UsageError, match="an error map already"):
        continued(tmp_path / "map", found.configuration, resume=False, force=False)
    assert continued(tmp_path / "map", found.configuration, resume=False, force=True).grid == {}
    assert continued(tmp_path / "map", found.configuration, resume=True, force=False).grid == found.grid
    assert continued(tmp_path / "other", found.configuration, resume=True, force=False).grid == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "points": 3}', "null"]
)
def test_a_file_that_is_no_map_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)
    for resume in (False, True):
        with pytest.raises(UsageError, match="not an error map"):
            continued(tmp_path / "map", {}, resume=resume, force=False)
    assert (tmp_path / "map.json").read_text() == text


def test_nothing_is_left_beside_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = error_map(3)
    write_results(found, tmp_path / "map")
    before = (tmp_path / "map.json").read_bytes()

    def full(source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    found.grid.popitem()
    with pytest.raises(OSError, match="No space"):
        write_results(found, tmp_path / "map")
    assert (tmp_path / "map.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.csv", "map.json"]
