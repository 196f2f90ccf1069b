"""The errors of float gradients that the README states."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import float_error


def test_an_error_is_relative_to_the_norm_of_all_tensors_together():
    expected = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    actual = [torch.tensor([3.0, 0.3]), torch.tensor([[4.4]])]
    assert float_error.relative_error(expected, expected) == 0.0
    assert float_error.relative_error(actual, expected) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.slow
def test_exact_gradients_have_no_error_and_float_ones_a_larger_one_at_a_smaller_beta(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(float_error, "POINTS", ((0.0, 1.0), (0.9, 0.1)))
    try:
        float_error.main(["--output", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    document = json.loads((tmp_path / "float_error.json").read_text())
    assert [table["segments"] for table in document["tables"]] == [12, 6]
    for table in document["tables"]:
        at_one, at_a_tenth = table["errors"]
        assert at_one["exact"] == at_a_tenth["exact"] == 0.0
        assert 0.0 < at_one["float"] < at_a_tenth["float"]
