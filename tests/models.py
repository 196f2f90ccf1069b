"""The small networks that the tests rewire: real classes of timm, torchvision and transformers, made small.

`NETWORKS` maps a name to a function that returns (network with random weights, example inputs). Dropout and
stochastic depth are on, so that training mode is random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...] | dict[str, torch.Tensor]


def seeded(make: Callable[[], tuple[nn.Module, Inputs]]) -> tuple[nn.Module, Inputs]:
    """A network and its inputs, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def images(size: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 3, size, size),)


def clips(frames: int, size: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 3, frames, size, size),)


def tokens(vocabulary: int = 99, length: int = 7, batch: int = 2) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, -2:] = 0
    return {"input_ids": torch.randint(0, vocabulary, (batch, length)), "attention_mask": mask}


def timm_vit(depth: int = 3, **settings: Any) -> tuple[nn.Module, Inputs]:
    import timm

    options = {"embed_dim": 32, "num_heads": 2, "num_classes": 5, "drop_rate": 0.1, "drop_path_rate": 0.2}
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=depth, **{**options, **settings}
    )
    return network, images(32)


def timm_swin() -> tuple[nn.Module, Inputs]:
    import timm

    network = timm.create_model(
        "swin_tiny_patch4_window7_224",
        **{"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 3), "num_heads": (2, 4)},
        **{"num_classes": 5, "drop_path_rate": 0.2, "drop_rate": 0.1},
    )
    return network, images(32)


def timm_convnext() -> tuple[nn.Module, Inputs]:
    import timm

    options = {"depths": (2, 2, 3, 1), "dims": (8, 16, 24, 32), "num_classes": 5, "drop_path_rate": 0.2}
    return timm.create_model("convnext_atto", **options), images(64)


def timm_resnet() -> tuple[nn.Module, Inputs]:
    import timm

    options = {"layers": (3, 2, 2, 2), "channels": (8, 8, 16, 16), "num_classes": 5, "drop_path_rate": 0.2}
    return timm.create_model("resnet50", **options), images(64, batch=3)


def timm_davit() -> tuple[nn.Module, Inputs]:
    import timm

    options = {"depths": (1, 2), "embed_dims": (16, 32), "num_heads": (2, 4), "num_classes": 5}
    return timm.create_model("davit_tiny", drop_path_rate=0.2, **options), images(56)


def torchvision_swin3d() -> tuple[nn.Module, Inputs]:
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    options = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": [2, 4, 4]}
    network = SwinTransformer3d(patch_size=[2, 4, 4], num_classes=5, dropout=0.1, **options)
    return network, clips(4, 32)


def torchvision_r3d() -> tuple[nn.Module, Inputs]:
    from torchvision.models.video import r3d_18

    return r3d_18(num_classes=5), clips(4, 32)


def torchvision_mvit() -> tuple[nn.Module, Inputs]:
    """Blocks that return the clip's size beside the stream, and one that widens and pools it."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    def block(width: int, out: int, stride: int) -> MSBlockConfig:
        return MSBlockConfig(2, width, out, [3, 3, 3], [3, 3, 3], [1, stride, stride], [1, 2, 2])

    settings = [block(16, 16, 1), block(16, 32, 2), block(32, 32, 1)]
    network = MViT(
        **{"spatial_size": (32, 32), "temporal_size": 4, "block_setting": settings, "num_classes": 5},
        **{"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True},
        **{"proj_after_attn": True, "stochastic_depth_prob": 0.2},
    )
    return network, clips(4, 32)


class TwoPathways(nn.Module):
    """SlowFast in small: two pathways of residual blocks, with a lateral connection between the stages.

    As in pytorchvideo, the pathways are a list that the network writes into.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList([Residual(8), Residual(4)]) for _ in range(2))
        self.lateral = nn.Linear(4, 8)
        self.head = nn.Linear(12, 5)

    def forward(self, pathways: list[torch.Tensor]) -> torch.Tensor:
        for stage in self.stages:
            for number, block in enumerate(stage):
                pathways[number] = block(pathways[number])
            slow, fast = pathways
            pathways[0] = slow + self.lateral(fast[:, :: fast.shape[1] // slow.shape[1]])
        return self.head(torch.cat([pathway.mean(1) for pathway in pathways], dim=-1))


def two_pathways() -> tuple[nn.Module, Inputs]:
    return TwoPathways(), ([torch.randn(2, 2, 8), torch.randn(2, 8, 4)],)


def torchvision_vit() -> tuple[nn.Module, Inputs]:
    from torchvision.models import VisionTransformer

    options = {"num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 5}
    network = VisionTransformer(image_size=32, patch_size=8, dropout=0.1, attention_dropout=0.1, **options)
    nn.init.normal_(network.heads[0].weight)  # torchvision starts it at zero, which hides everything
    return network, images(32)


_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


def hf_videomae() -> tuple[nn.Module, Inputs]:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    config = VideoMAEConfig(image_size=32, num_frames=4, hidden_dropout_prob=0.1, **_SMALL)
    return VideoMAEForVideoClassification(config), {"pixel_values": torch.randn(2, 4, 3, 32, 32)}


def hf_vit() -> tuple[nn.Module, Inputs]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=32, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **_SMALL)
    return ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def hf_swin() -> tuple[nn.Module, Inputs]:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 3],
        num_heads=[2, 4],
        window_size=4,
        drop_path_rate=0.2,
    )
    return SwinForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def hf_dinov2() -> tuple[nn.Module, Inputs]:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    small = {k: v for k, v in _SMALL.items() if k != "intermediate_size"}
    config = Dinov2Config(image_size=28, drop_path_rate=0.2, hidden_dropout_prob=0.1, **small)
    return Dinov2ForImageClassification(config), {"pixel_values": torch.randn(2, 3, 28, 28)}


def hf_bert() -> tuple[nn.Module, Inputs]:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(vocab_size=99, **_SMALL)), tokens()


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "timm vit": timm_vit,
    "timm swin": timm_swin,
    "timm convnext": timm_convnext,
    "timm resnet": timm_resnet,
    "timm davit": timm_davit,
    "torchvision swin3d": torchvision_swin3d,
    "torchvision r3d": torchvision_r3d,
    "torchvision vit": torchvision_vit,
    "transformers videomae": hf_videomae,
    "transformers vit": hf_vit,
    "transformers swin": hf_swin,
    "transformers dinov2": hf_dinov2,
    "transformers bert": hf_bert,
}


class Residual(nn.Module):
    """The plainest residual block: ``x + linear(norm(x))``."""

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.linear(self.norm(x)))


class Stack(nn.Module):
    """Blocks in a row between two layers."""

    def __init__(self, *blocks: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def residual_stack(depth: int = 4, dropout: float = 0.0) -> tuple[Stack, tuple[torch.Tensor, ...]]:
    return Stack(*(Residual(dropout=dropout) for _ in range(depth))), (torch.randn(3, 5, 8),)
