"""Task (c): a Swin that can segment upright digits learns to segment digits turned by a right angle."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.finetune.digit_images import generator, noised, placed, test_digits, train_digits, turned
from benchmarks.finetune.task import Batch, Settings, beside

SIZE = 32
_CELLS, _FILLED = 4, 0.6  # a digit stands in six of ten of 4 x 4 cells, moved by up to _AWAY pixels
_AWAY = 2
_CLASSES = 11  # the last one is the background
_INK = 0.3
_TEST_CANVASES = 120
_OPTIONS: dict[str, Any] = {
    **{"img_size": SIZE, "patch_size": 2, "in_chans": 1, "window_size": 4},
    **{"embed_dim": 24, "depths": (2, 6), "num_heads": (2, 4), "drop_path_rate": 0.0},
}


class Segmenter(nn.Module):
    """The backbone with a small pyramid of its two stages, and a class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, **_OPTIONS)
        self.norms = nn.ModuleList([nn.LayerNorm(24), nn.LayerNorm(48)])
        self.laterals = nn.ModuleList([nn.Linear(24, 32), nn.Linear(48, 32)])
        self.pixels = nn.Conv2d(32, 4 * _CLASSES, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 32, 32) to logits (N, 11, 32, 32)."""
        maps = [
            lateral(norm(found)).permute(0, 3, 1, 2)
            for found, norm, lateral in zip(self.backbone(images), self.norms, self.laterals, strict=True)
        ]
        fine = F.gelu(maps[0] + F.interpolate(maps[1], scale_factor=2.0))
        return F.pixel_shuffle(self.pixels(fine), 2)


class SegmentationTask:
    """Segmentation; chains of 4 and 12 segments with a tap behind each."""

    name = "segmentation"
    metric = "mean IoU"
    backbone: tuple[str, ...] = ("backbone.",)
    pretrained: tuple[str, ...] = ("",)
    text = (
        "a Swin (stages of 2 and 6 blocks, width 24, canvases of 32 x 32) under a small pyramid, pretrained "
        "to segment canvases that hold about ten upright digits (ten classes and background), finetuned, "
        "pyramid and all, under a shift: digits turned by 70 to 110 degrees"
    )

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(
            steps=80,
            batch=8,
            learning_rate=3e-3,
            samples=300,
            pretraining_steps=2500,
            pretraining_batch=8,
            pretraining_rate=2e-3,
        )

    def pretraining_network(self) -> nn.Module:
        return Segmenter()

    def pretraining_loss(self, network: nn.Module, seed: int) -> Tensor:
        draw = generator(21, seed)
        images, labels = train_digits()
        return self.loss(network, _canvases(images, labels, self.settings.pretraining_batch, 0, draw))

    def network(self) -> nn.Module:
        return Segmenter()

    def batch(self, seed: int, step: int) -> Batch:
        images, labels = train_digits()
        known = torch.randperm(len(labels), generator=generator(22, seed))[: self.settings.samples]
        return _canvases(images[known], labels[known], self.settings.batch, 90, generator(23, seed, step))

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        canvases, classes = beside(network, batch)
        return F.cross_entropy(network(canvases), classes)

    @cached_property
    def _test(self) -> Batch:
        images, labels = test_digits()
        count = self.settings.test_samples or _TEST_CANVASES
        return _canvases(images, labels, count, 90, generator(24))

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        """Intersection over union of all test pixels, mean over the eleven classes."""
        canvases, classes = beside(network, self._test)
        found = torch.cat([network(part).argmax(1) for part in canvases.split(40)])
        shares = []
        for number in range(_CLASSES):
            is_there, is_found = classes == number, found == number
            shares.append((is_there & is_found).sum() / (is_there | is_found).sum().clamp(min=1))
        return 100 * float(torch.stack(shares).mean())


def _canvases(images: Tensor, labels: Tensor, count: int, angle: float, draw: torch.Generator) -> Batch:
    """Canvases (count, 1, 32, 32) of digits from a pool (N, 8, 8), and classes (count, 32, 32)."""
    cells = torch.arange(_CELLS * _CELLS).repeat(count)
    chosen = torch.randint(len(images), cells.shape, generator=draw)
    filled = torch.rand(cells.shape, generator=draw) < _FILLED
    away = torch.randint(-_AWAY, _AWAY + 1, (2, len(cells)), generator=draw)
    top, left = cells // _CELLS * (SIZE // _CELLS) + away[0], cells % _CELLS * (SIZE // _CELLS) + away[1]
    digits = turned(images[chosen], angle, 20, draw) * filled[:, None, None]
    layers = placed(digits, top, left, SIZE).unflatten(0, (count, -1))
    canvas, nearest = layers.max(1)  # where two overlap, the brighter one is seen
    classes = labels[chosen].view(count, -1).gather(1, nearest.flatten(1)).view_as(nearest)
    classes = torch.where(canvas > _INK, classes, _CLASSES - 1)
    return _normal(noised(canvas, 0.1, draw)), classes


def _normal(canvases: Tensor) -> Tensor:
    return (canvases[:, None] - 0.1) / 0.25
