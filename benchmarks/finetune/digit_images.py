"""Digits turned, noised and placed on canvases and clips: what the three tasks see.

The digits are those of `benchmarks.digits`, scaled to [0, 1]; its split keeps training and test digits apart.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.digits import MEAN, STD, load_split

SIZE = 8


@cache
def train_digits() -> tuple[Tensor, Tensor]:
    """Images (1437, 8, 8) in [0, 1] and labels of the training part."""
    split = load_split()
    return _plain(split.train_images), split.train_labels


@cache
def test_digits() -> tuple[Tensor, Tensor]:
    """Images (360, 8, 8) in [0, 1] and labels of the test part."""
    split = load_split()
    return _plain(split.test_images), split.test_labels


def _plain(images: Tensor) -> Tensor:
    return images[:, 0] * STD + MEAN


def generator(*numbers: int) -> torch.Generator:
    """A generator for this sequence of small numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)


def turned(images: Tensor, middle: float, spread: float, draw: torch.Generator) -> Tensor:
    """Rotate each image (N, 8, 8) by middle +- spread degrees, and scale and shift it a little."""
    uniform = torch.rand(4, len(images), generator=draw) * 2 - 1
    angle = (middle + spread * uniform[0]) * math.pi / 180
    zoom = 1 + 0.12 * uniform[1]
    rows = [
        torch.stack([zoom * angle.cos(), -zoom * angle.sin(), 0.12 * uniform[2]], dim=1),
        torch.stack([zoom * angle.sin(), zoom * angle.cos(), 0.12 * uniform[3]], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [len(images), 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def noised(images: Tensor, amount: float, draw: torch.Generator) -> Tensor:
    """Add Gaussian noise of this standard deviation."""
    return images + amount * torch.randn(images.shape, generator=draw)


def placed(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Put images (N, 8, 8) on black canvases (N, size, size) that go on at the other edge (a torus).

    Args:
        images: float.
        top: rows (N,) of their upper edges, int64.
        left: columns (N,) of their left edges, int64.
        size: pixels of a canvas' edge.
    """
    rows = (torch.arange(size) - top[:, None]) % size
    columns = (torch.arange(size) - left[:, None]) % size
    canvas = F.pad(images, (0, size - SIZE, 0, size - SIZE))
    number = torch.arange(len(images))[:, None, None]
    return canvas[number, rows[:, :, None], columns[:, None, :]]
