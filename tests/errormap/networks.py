"""A ViT and a Swin with weights large enough that their branches matter, as in trained networks.

Made once and shared: a map leaves its network as it was found.
"""

from __future__ import annotations

import functools
from typing import Any

import timm
import torch
from torch import nn

import revsurgeon as rs

IMAGES = (2, 3, 32, 32)


@functools.cache
def vit() -> nn.Module:
    """12 segments in one chain."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2}
    return _rewired("vit_tiny_patch16_224", depth=6, **sizes)


@functools.cache
def swin() -> nn.Module:
    """Chains of 4 and 12 segments."""
    sizes = {"img_size": 32, "window_size": 4, "embed_dim": 16, "num_heads": (2, 4)}
    return _rewired("swin_tiny_patch4_window7_224", depths=(2, 6), **sizes)


def images() -> torch.Tensor:
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(0))


def _rewired(name: str, **settings: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=5, **settings)
        for parameter in network.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return rs.rewire(network.eval(), example_inputs=images(), recipe="dr2-hold")
