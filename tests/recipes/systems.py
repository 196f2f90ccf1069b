"""The papers' systems in small: SlowFast of pytorchvideo, a point cloud's ViT, and Swin inside detectors.

Each returns (network with random weights, example inputs), as those of tests.models do; so each of them can
also be converted as python:tests.recipes.systems:NAME.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.models import Inputs


def slowfast(depth: int = 50) -> tuple[nn.Module, Inputs]:
    """pytorchvideo's own, an eighth as wide: two pathways, lateral connections behind the stem and stages."""
    from pytorchvideo.models.slowfast import create_slowfast

    # The slow pathway sees 2 frames and the fast one 8; 32 pixels are one behind the last stage.
    network = create_slowfast(
        model_depth=depth,
        model_num_class=5,
        stem_dim_outs=(16, 2),
        head_pool_kernel_sizes=((2, 1, 1), (8, 1, 1)),
    )
    for layer in network.modules():  # it starts them at zero, which would hide the branches
        if isinstance(layer, nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
    return network, ([torch.randn(2, 3, 2, 32, 32), torch.randn(2, 3, 8, 32, 32)],)


def slowfast_101() -> tuple[nn.Module, Inputs]:
    return slowfast(101)


class PointTokens(nn.Module):
    """A point cloud as tokens: centers by farthest point sampling, a small PointNet over their neighbours.

    Args:
        width: of a token.
        centers: how many tokens.
        neighbours: points around a center, itself included.
    """

    def __init__(self, width: int, centers: int, neighbours: int) -> None:
        super().__init__()
        self.centers, self.neighbours = centers, neighbours
        self.points = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.position = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, cloud: torch.Tensor) -> torch.Tensor:
        """(batch, points, 3) to (batch, centers, width)."""
        chosen = torch.zeros(len(cloud), 1, dtype=torch.long, device=cloud.device)
        for _ in range(self.centers - 1):
            farthest = torch.cdist(cloud, self._at(cloud, chosen)).amin(dim=2).argmax(dim=1, keepdim=True)
            chosen = torch.cat([chosen, farthest], dim=1)
        centers = self._at(cloud, chosen)
        near = torch.cdist(centers, cloud).topk(self.neighbours, largest=False).indices
        groups = self._at(cloud, near.flatten(1)).unflatten(1, near.shape[1:]) - centers[:, :, None]
        return self.points(groups).amax(dim=2) + self.position(centers)

    @staticmethod
    def _at(cloud: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return cloud.gather(1, chosen[..., None].expand(-1, -1, 3))


class PointVit(nn.Module):
    """As in Pix4Point: blocks of an image's ViT behind a tokeniser of one's own; a class for each token."""

    def __init__(self, width: int, depth: int, heads: int, centers: int = 16, neighbours: int = 8) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.tokens = PointTokens(width, centers, neighbours)
        self.start = nn.Parameter(0.02 * torch.randn(1, 1, width))
        rates = {"proj_drop": 0.1, "attn_drop": 0.1, "drop_path": 0.1}
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, **rates) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(2 * width, 13)

    def forward(self, cloud: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(cloud)
        tokens = torch.cat([self.start.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return self.head(torch.cat([tokens[:, 1:], tokens[:, :1].expand_as(tokens[:, 1:])], dim=-1))


def point_vit() -> tuple[nn.Module, Inputs]:
    return PointVit(32, 3, 2), (torch.randn(2, 64, 3),)


def _swin(*depths: int) -> Any:
    """Swin's configuration in small; the features of all stages are given out."""
    from transformers import SwinConfig

    return SwinConfig(
        **{"image_size": 64, "patch_size": 4, "embed_dim": 8, "window_size": 4},
        depths=list(depths),
        num_heads=[1, 2, 2, 2][: len(depths)],
        out_features=[f"stage{number}" for number in range(1, len(depths) + 1)],
    )


def mask2former_swin() -> tuple[nn.Module, Inputs]:
    """Swin's stages feed the pixel decoder while the stream goes on: each is a tap."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        backbone_config=_swin(2, 1, 2, 1),
        **{"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32},
        **{"encoder_layers": 2, "decoder_layers": 3, "num_attention_heads": 2, "dim_feedforward": 32},
        **{"num_queries": 5, "num_labels": 3},
    )
    return Mask2FormerForUniversalSegmentation(config), {"pixel_values": torch.randn(2, 3, 64, 64)}


def deformable_detr_swin() -> tuple[nn.Module, Inputs]:
    """A detector of DINO's family: deformable attention over three of Swin's resolutions and one below."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    config = DeformableDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=_swin(2, 2, 1),
        **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2},
        **{"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5},
        **{"num_feature_levels": 4, "num_labels": 3},
    )
    return DeformableDetrForObjectDetection(config), {"pixel_values": torch.randn(2, 3, 64, 64)}
