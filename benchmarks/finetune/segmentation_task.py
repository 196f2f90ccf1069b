"""Task (c): a Swin that can name one digit learns to segment canvases with several of them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.finetune.digit_images import generator, noised, placed, test_digits, train_digits, turned
from benchmarks.finetune.task import Batch, Settings

SIZE = 32
_DIGITS, _CLASSES = 5, 11  # the last class is the background
_INK = 0.3
_TEST_CANVASES = 120
_OPTIONS: dict[str, Any] = {
    **{"img_size": SIZE, "patch_size": 2, "in_chans": 1, "window_size": 4},
    **{"embed_dim": 24, "depths": (2, 6), "num_heads": (2, 4), "drop_path_rate": 0.0},
}


class Classifier(nn.Module):
    """The backbone with a head that names one digit."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, **_OPTIONS)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.backbone(images)[-1]).mean((1, 2)))


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
    text = (
        "a Swin (stages of 2 and 6 blocks, width 24, canvases of 32 x 32) pretrained to name a single digit "
        "anywhere on a canvas, finetuned to segment canvases with five digits on them (ten classes and "
        "background) with a small pyramid on both stages"
    )

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(
            steps=80,
            batch=8,
            learning_rate=2e-3,
            samples=1437,
            pretraining_steps=1500,
            pretraining_batch=16,
            pretraining_rate=1.5e-3,
        )

    def pretraining_network(self) -> nn.Module:
        return Classifier()

    def pretraining_loss(self, network: nn.Module, seed: int) -> Tensor:
        draw = generator(21, seed)
        images, labels = train_digits()
        chosen = torch.randint(len(labels), (self.settings.pretraining_batch,), generator=draw)
        place = torch.randint(SIZE, (2, len(chosen)), generator=draw)
        canvases = placed(turned(images[chosen], 0, 15, draw), place[0], place[1], SIZE)
        return F.cross_entropy(network(_normal(noised(canvases, 0.1, draw))), labels[chosen])

    def network(self) -> nn.Module:
        return Segmenter()

    def batch(self, seed: int, step: int) -> Batch:
        images, labels = train_digits()
        known = torch.randperm(len(labels), generator=generator(22, seed))[: self.settings.samples]
        draw = generator(23, seed, step)
        chosen = known[torch.randint(len(known), (self.settings.batch * _DIGITS,), generator=draw)]
        return _canvases(images[chosen], labels[chosen], draw)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        canvases, classes = batch
        return F.cross_entropy(network(canvases), classes)

    @cached_property
    def _test(self) -> Batch:
        images, labels = test_digits()
        draw = generator(24)
        chosen = torch.randint(len(labels), (_TEST_CANVASES * _DIGITS,), generator=draw)
        return _canvases(images[chosen], labels[chosen], draw)

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        """Intersection over union of all test pixels, mean over the eleven classes."""
        canvases, classes = self._test
        found = torch.cat([network(part).argmax(1) for part in canvases.split(40)])
        shares = []
        for number in range(_CLASSES):
            is_there, is_found = classes == number, found == number
            shares.append((is_there & is_found).sum() / (is_there | is_found).sum().clamp(min=1))
        return 100 * float(torch.stack(shares).mean())


def _canvases(images: Tensor, labels: Tensor, draw: torch.Generator) -> Batch:
    """Five digits a canvas, later ones above earlier ones: images (N, 1, 32, 32) and classes (N, 32, 32)."""
    place = torch.randint(SIZE, (2, len(images)), generator=draw)
    layers = placed(turned(images, 0, 15, draw), place[0], place[1], SIZE).unflatten(0, (-1, _DIGITS))
    canvas = torch.zeros_like(layers[:, 0])
    classes = torch.full(canvas.shape, _CLASSES - 1)
    for number in range(_DIGITS):
        ink = layers[:, number] > _INK
        classes = torch.where(ink, labels.view(-1, _DIGITS)[:, number, None, None], classes)
        canvas = torch.where(ink, layers[:, number], torch.maximum(canvas, layers[:, number]))
    return _normal(noised(canvas, 0.1, draw)), classes


def _normal(canvases: Tensor) -> Tensor:
    return (canvases[:, None] - 0.1) / 0.25
