"""Task (a): a vision transformer that knows digits turned a little learns them turned by a right angle."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.finetune.digit_images import generator, noised, test_digits, train_digits, turned
from benchmarks.finetune.task import Batch, Settings, beside

_VIEWS = 4
_OPTIONS: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 48,
    "depth": 6,
    "num_heads": 4,
}


class DigitsTask:
    """Image classification; one chain of 12 segments."""

    name = "digits"
    metric = "accuracy"
    backbone: tuple[str, ...] = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
    pretrained = backbone
    text = (
        "a ViT (6 blocks, width 48, patches of 2 x 2) pretrained to classify digits turned by up to 45 "
        "degrees, finetuned with a new head under a shift: turned by 70 to 110 degrees"
    )

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(
            steps=120,
            batch=32,
            learning_rate=2e-3,
            samples=300,
            pretraining_steps=3000,
            pretraining_batch=64,
            pretraining_rate=2e-3,
        )

    def network(self) -> nn.Module:
        return timm.create_model("vit_tiny_patch16_224", num_classes=10, **_OPTIONS)

    pretraining_network = network

    def pretraining_loss(self, network: nn.Module, seed: int) -> Tensor:
        draw = generator(1, seed)
        images, labels = train_digits()
        chosen = torch.randint(len(labels), (self.settings.pretraining_batch,), generator=draw)
        seen = _normal(noised(turned(images[chosen], 0, 45, draw), 0.1, draw))
        seen, wanted = beside(network, (seen, labels[chosen]))
        return F.cross_entropy(network(seen), wanted, label_smoothing=0.1)

    def batch(self, seed: int, step: int) -> Batch:
        images, labels = train_digits()
        known = torch.randperm(len(labels), generator=generator(2, seed))[: self.settings.samples]
        draw = generator(3, seed, step)
        chosen = known[torch.randint(len(known), (self.settings.batch,), generator=draw)]
        return _shifted(images[chosen], draw), labels[chosen]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        images, labels = beside(network, batch)
        return F.cross_entropy(network(images), labels)

    @cached_property
    def _test(self) -> Batch:
        images, labels = test_digits()
        seen, wanted = _shifted(images.repeat(_VIEWS, 1, 1), generator(4)), labels.repeat(_VIEWS)
        return seen[: self.settings.test_samples], wanted[: self.settings.test_samples]

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        images, labels = beside(network, self._test)
        return 100 * float((network(images).argmax(1) == labels).float().mean())


def _shifted(images: Tensor, draw: torch.Generator) -> Tensor:
    return _normal(noised(turned(images, 90, 20, draw), 0.1, draw))


def _normal(images: Tensor) -> Tensor:
    """(N, 8, 8) in [0, 1] as the network takes it: (N, 1, 8, 8)."""
    return (images[:, None] - 0.3) / 0.4
