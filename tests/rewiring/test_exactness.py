"""Exact arithmetic in networks of the size that people train: the same integers, and the stored gradients."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from revsurgeon.reversible.arithmetic import ExactArithmetic
from tests.gradients import assert_identical, step
from tests.models import Inputs, images, seeded, timm_vit, tokens

BETAS = (0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
RATE = 0.1


def of_timm(name: str, dropout: bool = True, **settings: Any) -> Callable[[], tuple[nn.Module, Inputs]]:
    def make() -> tuple[nn.Module, Inputs]:
        import timm

        rates = {"drop_path_rate": RATE, **({"proj_drop_rate": RATE} if dropout else {})}
        return timm.create_model(name, **rates, **settings), images(224)

    return make


def videomae_s() -> tuple[nn.Module, Inputs]:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    small: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    config = VideoMAEConfig(hidden_dropout_prob=RATE, attention_probs_dropout_prob=RATE, **small)
    return VideoMAEForVideoClassification(config), {"pixel_values": torch.randn(1, 16, 3, 224, 224)}


def bert() -> tuple[nn.Module, Inputs]:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig()), tokens(30522, length=128)


def small_vit() -> tuple[nn.Module, Inputs]:
    return timm_vit(depth=12)


LARGE: Mapping[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "ViT of 24 segments": of_timm("vit_small_patch16_224"),
    "ViT of 96 segments": of_timm("vit_small_patch16_224", depth=48),
    "Swin-T": of_timm("swin_tiny_patch4_window7_224"),
    "ConvNeXt-T": of_timm("convnext_tiny", dropout=False),
    "ResNet-50": of_timm("resnet50", dropout=False),
    "VideoMAE-S": videomae_s,
    "BERT": bert,
}


@functools.lru_cache(maxsize=1)
def rewired(make: Callable[[], tuple[nn.Module, Inputs]]) -> tuple[nn.Module, Inputs]:
    network, inputs = seeded(make)
    rs.rewire(network, example_inputs=inputs, arithmetic="exact").train()
    return network, inputs


class Integers:
    """What the streams were, segment by segment, and whether they came back."""

    def __init__(self) -> None:
        self.went: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.came_back = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("next_x", "next_y", "previous_x", "previous_y"):
                patch.setattr(ExactArithmetic, name, self._observing(name, getattr(ExactArithmetic, name)))
            yield

    def _observing(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def next_x(arithmetic: ExactArithmetic, y: torch.Tensor, *rest: Any, **options: Any) -> Any:
            self._y = y.clone()
            return method(arithmetic, y, *rest, **options)

        def next_y(arithmetic: ExactArithmetic, x: torch.Tensor, *rest: Any, **options: Any) -> Any:
            self.went.append((x.clone(), self._y))
            return method(arithmetic, x, *rest, **options)

        def previous_x(arithmetic: ExactArithmetic, *rest: Any, **options: Any) -> Any:
            found = method(arithmetic, *rest, **options)
            assert torch.equal(found, self.went[-1][0])
            return found

        def previous_y(arithmetic: ExactArithmetic, x: Any, g: Any, out: torch.Tensor) -> None:
            method(arithmetic, x, g, out)
            assert torch.equal(out, self.went.pop()[1].to(out.dtype))
            self.came_back += 1

        observers: dict[str, Callable[..., Any]] = {
            **{"next_x": next_x, "next_y": next_y, "previous_x": previous_x, "previous_y": previous_y},
        }
        return observers[name]


def assert_exact(make: Callable[[], tuple[nn.Module, Inputs]], beta: float, autocast: bool) -> None:
    network, inputs = rewired(make)
    rs.set_coefficients(network, 1.0 - beta, beta)
    integers = Integers()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        with integers.watched():
            reversible = step(network, inputs)
        stored = step(network, inputs, inside=rs.stored_activations(network))
    assert integers.came_back == sum(sum(chain.segments) for chain in rs.chains(network))
    assert not integers.went
    assert_identical(reversible, stored)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16 autocast"])
def test_every_integer_of_24_segments_comes_back(autocast: bool) -> None:
    assert_exact(small_vit, 0.1, autocast)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16 autocast"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", LARGE)
def test_every_integer_of_a_large_network_comes_back(name: str, beta: float, autocast: bool) -> None:
    assert_exact(LARGE[name], beta, autocast)
