"""The networks on which ways to train are put side by side, and where their residual branches are.

The registry's reversible libraries take functions, not networks: what each block adds to its input has to be
cut out of the block by hand. `Subject.branches` does that. Weights are random, from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

RATE = 0.1
"""Of dropout and of stochastic depth, where they are on."""


@dataclass(frozen=True)
class Subject:
    """A network of the comparison.

    Attributes:
        title: for people.
        build: makes it; the argument is the rate of dropout and stochastic depth.
        inputs: example inputs for a batch of so many samples.
        stages: paths of the modules that hold blocks in a row.
        branches: what a block adds to its input, as functions in the order of their calls; None where a block
            does more than add.
        skipped: blocks at the head of every stage that change the shape.
    """

    title: str
    build: Callable[[float], nn.Module]
    inputs: Callable[[int], tuple[torch.Tensor, ...] | dict[str, torch.Tensor]]
    stages: tuple[str, ...]
    branches: Callable[[nn.Module], list[nn.Module]] | None
    skipped: int = 0

    def make(self, rate: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network in training mode, with the same weights every time."""
        torch.manual_seed(0)
        return self.build(rate).to(dtype).train()

    def example(
        self, batch: int, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
        """The same random inputs every time."""
        torch.manual_seed(1)
        inputs = self.inputs(batch)
        if isinstance(inputs, dict):
            return {name: tensor.to(dtype) for name, tensor in inputs.items()}
        return tuple(tensor.to(dtype) for tensor in inputs)

    def blocks(self, network: nn.Module) -> list[str]:
        """Paths of all blocks."""
        stages = ((path, network.get_submodule(path)) for path in self.stages)
        return [f"{path}.{name}" for path, stage in stages for name, _ in stage.named_children()]


class Branch(nn.Module):
    """What a block adds to its input: some of its own modules, one after the other."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


class WindowAttention(nn.Module):
    """The attention branch of a timm Swin block, whose windows are cut by a method of the block."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm, self.attention, self.drop_path = block.norm1, block.attn, block.drop_path1
        self._block = (block,)  # in a tuple: its other parameters are not this branch's

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = self.drop_path(self._block[0]._attn(self.norm(x)))
        return attended


def _vit_branches(block: Any) -> list[nn.Module]:
    return [
        Branch(block.norm1, block.attn, block.ls1, block.drop_path1),
        Branch(block.norm2, block.mlp, block.ls2, block.drop_path2),
    ]


def _swin_branches(block: Any) -> list[nn.Module]:
    return [WindowAttention(block), Branch(block.norm2, block.mlp, block.drop_path2)]


def _video_swin_branches(block: Any) -> list[nn.Module]:
    return [
        Branch(block.norm1, block.attn, block.stochastic_depth),
        Branch(block.norm2, block.mlp, block.stochastic_depth),
    ]


def _videomae_branches(layer: Any) -> list[nn.Module]:
    return [
        Branch(layer.layernorm_before, layer.attention),
        Branch(layer.layernorm_after, layer.intermediate, layer.output.dense, layer.output.dropout),
    ]


def _images(size: int) -> Callable[[int], tuple[torch.Tensor, ...]]:
    return lambda batch: (torch.randn(batch, 3, size, size),)


def _vit(title: str, name: str, size: int = 224, **settings: Any) -> Subject:
    def build(rate: float) -> nn.Module:
        import timm

        return timm.create_model(name, proj_drop_rate=rate, drop_path_rate=rate, **settings)

    return Subject(title, build, _images(size), ("blocks",), _vit_branches)


def _videomae(rate: float) -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    small: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    config = VideoMAEConfig(num_hidden_layers=12, hidden_dropout_prob=rate, **small)
    config.num_labels = 400
    return VideoMAEForVideoClassification(config)


def _swin(rate: float) -> nn.Module:
    import timm

    return timm.create_model("swin_tiny_patch4_window7_224", proj_drop_rate=rate, drop_path_rate=rate)


def _video_swin(rate: float) -> nn.Module:
    from torchvision.models.video import swin3d_t

    network = swin3d_t(dropout=rate)
    if not rate:  # the rate of its stochastic depth is not an argument
        for module in network.modules():
            if hasattr(module, "stochastic_depth"):
                module.stochastic_depth = nn.Identity()
    return network


def _resnet(rate: float) -> nn.Module:
    import timm

    # By default every branch ends in a scale of zero, and an error in it would be seen nowhere.
    return timm.create_model("resnet50", drop_path_rate=rate, zero_init_last=False)


_TINY: dict[str, Any] = {
    **{"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 3, "num_classes": 5},
}

SUBJECTS: Mapping[str, Subject] = {
    "vit-s": _vit("ViT-S, 224 x 224", "vit_small_patch16_224"),
    "vit-l": _vit("ViT-L, 224 x 224", "vit_large_patch16_224"),
    "videomae-s": Subject(
        "VideoMAE-S, 16 x 224 x 224",
        _videomae,
        lambda batch: {"pixel_values": torch.randn(batch, 16, 3, 224, 224)},
        ("videomae.encoder.layer",),
        _videomae_branches,
    ),
    "swin-t": Subject(
        "Swin-T, 224 x 224",
        _swin,
        _images(224),
        tuple(f"layers.{i}.blocks" for i in range(4)),
        _swin_branches,
    ),
    "video-swin-t": Subject(
        "Video Swin-T, 16 x 224 x 224",
        _video_swin,
        lambda batch: (torch.randn(batch, 3, 16, 224, 224),),
        tuple(f"features.{i}" for i in (0, 2, 4, 6)),
        _video_swin_branches,
    ),
    "resnet-50": Subject(
        "ResNet-50, 224 x 224",
        _resnet,
        _images(224),
        tuple(f"layer{i}" for i in range(1, 5)),
        None,
        skipped=1,
    ),
    **{
        f"vit-s-depth-{depth}": _vit(f"ViT-S, depth {depth}, 224 x 224", "vit_small_patch16_224", depth=depth)
        for depth in (24, 48, 96)
    },
    "tiny": _vit("a tiny ViT, for the tests", "vit_tiny_patch16_224", 32, **_TINY),
}
DEPTHS = {"vit-s": 12, "vit-s-depth-24": 24, "vit-s-depth-48": 48, "vit-s-depth-96": 96}
"""One network, deeper and deeper."""

MEASURED = tuple(name for name in SUBJECTS if name != "tiny")
"""What a run without `--network` measures."""
