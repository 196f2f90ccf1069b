"""Networks that these tests convert as `python:` sources, besides those of `tests.models`."""

from __future__ import annotations

import torch
from torch import nn

from tests.models import Inputs, images, residual_stack


def timm_swin_v2() -> tuple[nn.Module, Inputs]:
    """A network with a floating buffer that is not in its state dict."""
    import timm

    network = timm.create_model(
        "swinv2_tiny_window8_256",
        **{"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2,), "num_heads": (2,)},
        num_classes=5,
    )
    return network, images(32)


def densenet() -> tuple[nn.Module, Inputs]:
    """A network without a residual addition anywhere."""
    import timm

    options = {"block_config": (2, 2), "growth_rate": 8, "num_classes": 5}
    return timm.create_model("densenet121", **options), images(32)


def stack_with_a_nan() -> tuple[nn.Module, Inputs]:
    """A network of which one weight is not a number."""
    network, inputs = residual_stack()
    with torch.no_grad():
        network.blocks[1].linear.weight[0, 0] = torch.nan
    return network, inputs


def deep_stack() -> tuple[nn.Module, Inputs]:
    """So many residual modules that float reversal at beta = .1 overflows."""
    return residual_stack(depth=48)
