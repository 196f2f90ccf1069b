"""The network that travels with the package is as accurate as its README.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch

import revsurgeon.errors

DEMO = Path(revsurgeon.errors.__file__).parent / "sources" / "demo"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from digits import load_split

    return load_split()


def test_the_accuracy_of_the_shipped_weights_is_the_one_stated(digits):
    stated = re.search(r"Test accuracy: ([.\d]+) \((\d+) of (\d+) images\)", (DEMO / "README.md").read_text())
    assert stated is not None
    accuracy, correct, images = float(stated[1]), int(stated[2]), int(stated[3])
    assert accuracy >= 0.97
    assert accuracy == round(correct / images, 4)
    assert images == len(digits.test_labels)

    model = timm.create_model(f"local-dir:{DEMO}", pretrained=True).eval()
    with torch.no_grad():
        logits = model(digits.test_images)
    # Another processor may round an image that is a toss-up otherwise; none is closer than 1e-4.
    margins = logits.topk(2).values.diff().abs()
    assert margins.min() > 1e-4
    assert int((logits.argmax(dim=1) == digits.test_labels).sum()) == correct


def test_no_test_image_is_among_the_training_images(digits):
    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    distance = torch.cdist(digits.test_images.flatten(1), digits.train_images.flatten(1))
    assert distance.min() > 0


def test_the_shipped_weights_are_a_few_hundred_kilobytes():
    assert (DEMO / "model.safetensors").stat().st_size < 600_000
