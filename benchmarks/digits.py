"""The digits that the demo network was trained on, and the one split that training and tests share.

scikit-learn's copy of the UCI handwritten digits: 1797 grey images of 8 x 8 pixels, ten classes.
revsurgeon itself never needs them; the training script and the accuracy test do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

SPLIT_SEED = 0
TEST_IMAGES = 360  # one in five of the 1797

# Of all pixels scaled to [0, 1]; the same numbers stand in the demo's config.json.
MEAN = 0.305
STD = 0.376


class Digits(NamedTuple):
    """Normalised images (N, 1, 8, 8) in float32 and labels (N,) in int64, in two disjoint parts."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_split() -> Digits:
    """Return the digits, normalised, split by a permutation that depends on ``SPLIT_SEED`` alone.

    ``RandomState`` is numpy's frozen generator: its stream never changes between versions.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images = (images - MEAN) / STD
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(len(labels)))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(images[train], labels[train], images[test], labels[test])
