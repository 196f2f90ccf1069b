"""Task (b): a VideoMAE that was pretrained as a masked autoencoder learns to tell motions and digits."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from benchmarks.finetune.digit_images import generator, noised, placed, test_digits, train_digits, turned
from benchmarks.finetune.task import Batch, Settings

FRAMES, SIZE, TUBELET, PATCH = 6, 12, 2, 4
_MOTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))
"""Rows and columns a frame."""
_NAMED = 4  # the digits 0 to 3 are told apart; pretraining sees all ten
_TEST_VIEWS = 5
_MASKED = 5


class VideoTask:
    """Action recognition on clips; one chain of 12 segments."""

    name = "video"
    metric = "accuracy"
    backbone: tuple[str, ...] = ("videomae.",)
    pretrained = backbone
    text = (
        "a VideoMAE (transformers' classes, 6 blocks, width 48, clips of 6 frames of 12 x 12) pretrained as "
        "a masked autoencoder (tubes, 5 of 9 places masked) on unlabelled clips of moving digits, finetuned "
        "to tell 16 classes: four directions by the digits 0 to 3"
    )

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(
            steps=120,
            batch=24,
            learning_rate=3e-3,
            samples=500,
            pretraining_steps=6000,
            pretraining_batch=32,
            pretraining_rate=2e-3,
        )

    def _config(self) -> VideoMAEConfig:
        return VideoMAEConfig(
            image_size=SIZE,
            patch_size=PATCH,
            num_channels=1,
            num_frames=FRAMES,
            tubelet_size=TUBELET,
            hidden_size=48,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=192,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=128,
            # The usual .02 belongs to wide networks: here the patches would drown in their positions.
            initializer_range=0.15,
            id2label={number: str(number) for number in range(len(_MOTIONS) * _NAMED)},
        )

    def pretraining_network(self) -> nn.Module:
        return VideoMAEForPreTraining(self._config())

    def pretraining_loss(self, network: nn.Module, seed: int) -> Tensor:
        draw = generator(11, seed)
        images, _ = train_digits()
        chosen = torch.randint(len(images), (self.settings.pretraining_batch,), generator=draw)
        clips = _clips(images[chosen], torch.randint(4, chosen.shape, generator=draw), draw)
        masked = _tubes(len(clips), draw)
        # Its own loss normalises each patch, and most patches here hold nothing but noise.
        guessed = network(clips, bool_masked_pos=masked).logits
        return F.mse_loss(guessed, _patches(clips)[masked].view_as(guessed))

    def network(self) -> nn.Module:
        return VideoMAEForVideoClassification(self._config())

    def batch(self, seed: int, step: int) -> Batch:
        images, labels = _named(*train_digits())
        known = torch.randperm(len(labels), generator=generator(12, seed))[: self.settings.samples]
        draw = generator(13, seed, step)
        chosen = known[torch.randint(len(known), (self.settings.batch,), generator=draw)]
        motions = torch.randint(4, chosen.shape, generator=draw)
        return _clips(images[chosen], motions, draw), labels[chosen] * 4 + motions

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        clips, labels = batch
        return F.cross_entropy(network(clips).logits, labels)

    @cached_property
    def _test(self) -> Batch:
        images, labels = _named(*test_digits())
        images, labels = images.repeat(_TEST_VIEWS, 1, 1), labels.repeat(_TEST_VIEWS)
        draw = generator(14)
        motions = torch.randint(4, labels.shape, generator=draw)
        return _clips(images, motions, draw), labels * 4 + motions

    @torch.no_grad()
    def score(self, network: nn.Module) -> float:
        clips, labels = self._test
        found = torch.cat([network(part).logits.argmax(1) for part in clips.split(120)])
        return 100 * float((found == labels).float().mean())


def _named(images: Tensor, labels: Tensor) -> Batch:
    kept = labels < _NAMED
    return images[kept], labels[kept]


def _clips(images: Tensor, motions: Tensor, draw: torch.Generator) -> Tensor:
    """Clips (N, T, 1, H, W) of digits (N, 8, 8) that move a pixel a frame on a torus, whole at first."""
    images = turned(images, 0, 15, draw)
    place = torch.randint(SIZE - 7, (2, len(images)), generator=draw)
    way = torch.tensor(_MOTIONS)[motions].T
    frames = [placed(images, place[0] + way[0] * t, place[1] + way[1] * t, SIZE) for t in range(FRAMES)]
    return (noised(torch.stack(frames, 1), 0.1, draw)[:, :, None] - 0.1) / 0.3


def _tubes(count: int, draw: torch.Generator) -> Tensor:
    """Masks (N, tokens) that hide the same places in all frames, equally many in each clip."""
    places = (SIZE // PATCH) ** 2
    order = torch.rand(count, places, generator=draw).argsort(1)
    return (order < _MASKED).repeat(1, FRAMES // TUBELET)


def _patches(clips: Tensor) -> Tensor:
    """The pixels of each token (N, tokens, TUBELET * PATCH * PATCH), in the order of the tokens."""
    cut = clips[:, :, 0].unflatten(1, (-1, TUBELET)).unflatten(3, (-1, PATCH)).unflatten(5, (-1, PATCH))
    return cut.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
