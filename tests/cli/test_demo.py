"""`revsurgeon demo`: the tour runs, learns something, and leaves nothing behind."""

from __future__ import annotations

import json
import tempfile

import pytest
import torch

import revsurgeon as rs
from revsurgeon.cli import tour


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_the_tour_shows_every_part_and_leaves_nothing_behind(revsurgeon, tmp_path):
    result = revsurgeon("demo", "--steps", "3")
    assert result.code == 0, result.err
    headings = [line for line in result.out.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")]
    assert len(headings) == 5
    assert "relative gradient error, float" in result.out
    assert "Recommended: " in result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_finetuning_teaches_the_network_the_new_domain(revsurgeon):
    document = json.loads(revsurgeon("demo", "--json").out)["finetune"]
    assert document["accuracy_before"] < 0.5
    assert document["accuracy_after"] > 0.8
    first, last = document["steps"][0], document["steps"][-1]
    assert (first["alpha"], first["beta"]) == (0.95, 0.05)
    assert (last["alpha"], last["beta"]) == (0.95, 0.05)
    kept = document["bytes_kept_for_backward"]
    assert kept["reversible"] < kept["stored"] / 2


@pytest.mark.slow
def test_the_converted_network_is_kept_where_one_asks_for_it(revsurgeon, tmp_path):
    assert revsurgeon("demo", "--steps", "1", "--output", "kept", "--quiet").code == 0
    assert rs.load(tmp_path / "kept")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert (tmp_path / "kept-errmap.png").stat().st_size > 10_000


def test_printed_digits_are_the_same_for_the_same_seed_and_all_ten_come():
    images, labels = tour.printed_digits(200, seed=3)
    again, _ = tour.printed_digits(200, seed=3)
    assert torch.equal(images, again)
    assert images.shape == (200, 1, 8, 8)
    assert labels.unique().tolist() == list(range(10))
