"""Task (b): a VideoMAE that was pretrained as a masked autoencoder learns to tell motions and digits.

In two sizes: one for a CPU core, and VideoMAE-S on longer and larger clips for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from benchmarks.finetune.digit_images import generator, noised, placed, test_digits, train_digits, turned
from benchmarks.finetune.task import Batch, Settings, beside

_MOTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""Rows and columns a frame."""
_TEST_VIEWS = 5


@dataclass(frozen=True)
class Size:
    """Of the clips, and of the network that sees them.

    Attributes:
        frames: of a clip.
        cells: of the canvas' edge; a digit has 8, and moves one a frame.
        zoom: pixels a cell.
        tubelet: frames a token.
        patch: pixels a token's edge.
        masked: places that pretraining hides.
        digits: how many are told apart; pretraining sees all ten.
        width: of the network.
        depth: its blocks.
        decoder_width: of what rebuilds the hidden places in pretraining.
        decoder_depth: its blocks.
        heads: of attention, in both.
        deviation: of the initial weights.
    """

    frames: int
    cells: int
    zoom: int
    tubelet: int
    patch: int
    masked: int
    digits: int
    width: int
    depth: int
    decoder_width: int
    decoder_depth: int
    heads: int
    deviation: float

    @property
    def pixels(self) -> int:
        """Of a frame's edge."""
        return self.cells * self.zoom

    @property
    def places(self) -> int:
        """Tokens of a tubelet."""
        return (self.pixels // self.patch) ** 2


# The usual deviation of .02 belongs to wide networks: in a narrow one patches would drown in their positions.
SMALL = Size(
    **{"frames": 6, "cells": 12, "zoom": 1, "tubelet": 2, "patch": 4, "masked": 5, "digits": 4},
    **{"width": 48, "depth": 6, "decoder_width": 32, "decoder_depth": 2, "heads": 4},
    deviation=0.15,
)
LARGE = Size(
    **{"frames": 16, "cells": 24, "zoom": 4, "tubelet": 2, "patch": 16, "masked": 32, "digits": 10},
    **{"width": 384, "depth": 12, "decoder_width": 192, "decoder_depth": 4, "heads": 6},
    deviation=0.02,
)


class VideoTask:
    """Action recognition on clips; one chain of 12 segments."""

    name = "video"
    metric = "accuracy"
    backbone: tuple[str, ...] = ("videomae.",)
    pretrained = backbone
    size = SMALL
    text = (
        "a VideoMAE (transformers' classes, 6 blocks, width 48, clips of 6 frames of 12 x 12) pretrained as "
        "a masked autoencoder (tubes, 5 of 9 places masked) on unlabelled clips of moving digits, finetuned "
        "to tell 16 classes: four directions by the digits 0 to 3"
    )

    own_settings = Settings(
        steps=120,
        batch=24,
        learning_rate=3e-3,
        samples=500,
        pretraining_steps=6000,
        pretraining_batch=32,
        pretraining_rate=2e-3,
    )

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or self.own_settings

    def _config(self) -> VideoMAEConfig:
        size = self.size
        return VideoMAEConfig(
            image_size=size.pixels,
            patch_size=size.patch,
            num_channels=1,
            num_frames=size.frames,
            tubelet_size=size.tubelet,
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            decoder_hidden_size=size.decoder_width,
            decoder_num_hidden_layers=size.decoder_depth,
            decoder_num_attention_heads=size.heads,
            decoder_intermediate_size=4 * size.decoder_width,
            initializer_range=size.deviation,
            id2label={number: str(number) for number in range(len(_MOTIONS) * size.digits)},
        )

    def pretraining_network(self) -> nn.Module:
        return VideoMAEForPreTraining(self._config())

    def pretraining_loss(self, network: nn.Module, seed: int) -> Tensor:
        draw = generator(11, seed)
        images, _ = train_digits()
        chosen = torch.randint(len(images), (self.settings.pretraining_batch,), generator=draw)
        clips = self._clips(images[chosen], torch.randint(4, chosen.shape, generator=draw), draw)
        clips, masked = beside(network, (clips, self._tubes(len(clips), draw)))
        # Its own loss normalises each patch, and most patches here hold nothing but noise.
        guessed = network(clips, bool_masked_pos=masked).logits
        return F.mse_loss(guessed, self._patches(clips)[masked].view_as(guessed))

    def network(self) -> nn.Module:
        return VideoMAEForVideoClassification(self._config())

    def batch(self, seed: int, step: int) -> Batch:
        images, labels = self._named(*train_digits())
        known = torch.randperm(len(labels), generator=generator(12, seed))[: self.settings.samples]
        draw = generator(13, seed, step)
        chosen = known[torch.randint(len(known), (self.settings.batch,), generator=draw)]
        motions = torch.randint(4, chosen.shape, generator=draw)
        return self._clips(images[chosen], motions, draw), labels[chosen] * 4 + motions

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        clips, labels = beside(network, batch)
        return F.cross_entropy(network(clips).logits, labels)

    @cached_property
    def _test(self) -> Batch:
        images, labels = self._named(*test_digits())
        images, labels = images.repeat(_TEST_VIEWS, 1, 1), labels.repeat(_TEST_VIEWS)
        images, labels = images[: self.settings.test_samples], labels[: self.settings.test_samples]
        draw = generator(14)
        motions = torch.randint(4, labels.shape, generator=draw)
        return self._clips(images, motions, draw), labels * 4 + motions

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        clips, labels = beside(network, self._test)
        found = torch.cat([network(part).logits.argmax(1) for part in clips.split(120)])
        return 100 * float((found == labels).float().mean())

    def _named(self, images: Tensor, labels: Tensor) -> Batch:
        kept = labels < self.size.digits
        return images[kept], labels[kept]

    def _clips(self, images: Tensor, motions: Tensor, draw: torch.Generator) -> Tensor:
        """Clips (N, T, 1, H, W) of digits (N, 8, 8) that move a cell a frame on a torus, whole at first."""
        cells = self.size.cells
        images = turned(images, 0, 15, draw)
        place = torch.randint(cells - 7, (2, len(images)), generator=draw)
        way = torch.tensor(_MOTIONS)[motions].T
        frames = [
            placed(images, place[0] + way[0] * t, place[1] + way[1] * t, cells)
            for t in range(self.size.frames)
        ]
        clips = torch.stack(frames, 1)
        if self.size.zoom > 1:
            clips = F.interpolate(clips, scale_factor=float(self.size.zoom), mode="bilinear")
        return (noised(clips, 0.1, draw)[:, :, None] - 0.1) / 0.3

    def _tubes(self, count: int, draw: torch.Generator) -> Tensor:
        """Masks (N, tokens) that hide the same places in all frames, equally many in each clip."""
        order = torch.rand(count, self.size.places, generator=draw).argsort(1)
        return (order < self.size.masked).repeat(1, self.size.frames // self.size.tubelet)

    def _patches(self, clips: Tensor) -> Tensor:
        """The pixels of each token (N, tokens, tubelet * patch * patch), in the order of the tokens."""
        tubelet, patch = self.size.tubelet, self.size.patch
        cut = clips[:, :, 0].unflatten(1, (-1, tubelet)).unflatten(3, (-1, patch)).unflatten(5, (-1, patch))
        return cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)


class LargeVideoTask(VideoTask):
    """The same for a GPU; one chain of 24 segments."""

    name = "video-large"
    size = LARGE
    text = (
        "VideoMAE-S (12 blocks, width 384, clips of 16 frames of 96 x 96) pretrained as a masked autoencoder "
        "(tubes, 32 of 36 places masked) on unlabelled clips of moving digits, finetuned to tell 40 classes: "
        "four directions by ten digits"
    )
    own_settings = Settings(
        steps=1000,
        batch=32,
        learning_rate=5e-4,
        samples=1000,
        pretraining_steps=20000,
        pretraining_batch=64,
        pretraining_rate=5e-4,
    )
