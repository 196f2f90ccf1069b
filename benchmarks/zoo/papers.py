"""The systems that Re2TAL, Dr2Net, RevNet and Rev-ViT rewired by hand, in full size: what inspection finds.

    python -m benchmarks.zoo.papers         # writes results/papers.json, part of docs/coverage.md

Networks are made on the meta device where they run on it: neither weights nor memory are needed. That the
surgery is right on each of them is tested on small ones, in tests/recipes/test_papers.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

FILE = Path(__file__).parents[1] / "results" / "papers.json"


@dataclass(frozen=True)
class System:
    """A system of a paper.

    Attributes:
        name: as the papers call it.
        recipe: of recipes/.
        made: what makes the network here.
        make: returns it and its example inputs.
        device: where it is made; a network that makes tensors on the CPU by itself does not run on meta.
    """

    name: str
    recipe: str
    made: str
    make: Callable[[], tuple[nn.Module, Any]]
    device: str = "meta"


def _clip(frames: int, size: int = 224) -> torch.Tensor:
    return torch.zeros(1, 3, frames, size, size)


def _torchvision(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import torchvision

        return torchvision.models.get_model(name, weights=None), (_clip(16),)

    return make


def _timm(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import timm

        return timm.create_model(name), (torch.zeros(1, 3, 224, 224),)

    return make


def _slowfast(depth: int) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        from pytorchvideo.models.slowfast import create_slowfast

        return create_slowfast(model_depth=depth), ([_clip(8), _clip(32)],)

    return make


def _videomae(width: int, heads: int) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        from transformers import VideoMAEConfig, VideoMAEForVideoClassification

        config = VideoMAEConfig(hidden_size=width, intermediate_size=4 * width, num_attention_heads=heads)
        return VideoMAEForVideoClassification(config), {"pixel_values": torch.zeros(1, 16, 3, 224, 224)}

    return make


def _mae() -> tuple[nn.Module, Any]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    return ViTMAEForPreTraining(ViTMAEConfig()), {"pixel_values": torch.zeros(1, 3, 224, 224)}


def _points() -> tuple[nn.Module, Any]:
    from tests.recipes.systems import PointVit

    return PointVit(384, 12, 6, centers=128, neighbours=32), (torch.zeros(1, 1024, 3),)


def _swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])


def _mask2former() -> tuple[nn.Module, Any]:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(backbone_config=_swin())
    return Mask2FormerForUniversalSegmentation(config), {"pixel_values": torch.zeros(1, 3, 224, 224)}


def _detector() -> tuple[nn.Module, Any]:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    features = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    config = DeformableDetrConfig(**features, backbone_config=_swin(), num_feature_levels=4)
    return DeformableDetrForObjectDetection(config), {"pixel_values": torch.zeros(1, 3, 224, 224)}


SYSTEMS = (
    System("Video Swin-T", "video-swin-tiny", "torchvision:swin3d_t", _torchvision("swin3d_t")),
    System("Video Swin-S", "video-swin-small", "torchvision:swin3d_s", _torchvision("swin3d_s")),
    System("Video Swin-B", "video-swin-base", "torchvision:swin3d_b", _torchvision("swin3d_b")),
    System("SlowFast-50", "slowfast-50", "pytorchvideo", _slowfast(50)),
    System("SlowFast-101", "slowfast-101", "pytorchvideo", _slowfast(101)),
    System("VideoMAE ViT-S", "videomae-small", "transformers", _videomae(384, 6)),
    System("VideoMAE ViT-B", "videomae-base", "transformers", _videomae(768, 12)),
    System("MAE ViT-B, with its decoder", "vit-mae-base", "transformers", _mae),
    System("Pix4Point, ViT-S on points", "pix4point-vit-small", "a module of one's own", _points),
    System("Swin-T in Mask2Former", "mask2former-swin-tiny", "transformers", _mask2former, "cpu"),
    System("Swin-T in a DETR", "swin-tiny-detector", "transformers, Deformable DETR", _detector, "cpu"),
    System("ResNet-50", "resnet-50", "timm:resnet50", _timm("resnet50")),
    System("ViT-S", "vit-small", "timm:vit_small_patch16_224", _timm("vit_small_patch16_224")),
    System("MViTv2-S", "mvit-v2-small", "torchvision:mvit_v2_s", _torchvision("mvit_v2_s")),
)


def row(system: System) -> dict[str, Any]:
    """What inspection finds in a system, with its recipe's choice of blocks."""
    import revsurgeon as rs
    from revsurgeon.recipes import load_recipe

    recipe = load_recipe(system.recipe)
    with torch.device(system.device):
        network, inputs = system.make()
    anatomy = rs.inspect(network, inputs, granularity=recipe.granularity, select=recipe.selects)
    return {
        "name": system.name,
        "recipe": system.recipe,
        "made": system.made,
        "segments": [len(chain.segments) for chain in anatomy.chains],
        "share": round(anatomy.share, 4),
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def main() -> None:
    """Look at all systems, or at those that are named, and write what was found."""
    found = {r["name"]: r for r in recorded()}
    for system in SYSTEMS:
        if len(sys.argv) == 1 or system.recipe in sys.argv[1:]:
            found[system.name] = row(system)
            print(found[system.name], file=sys.stderr, flush=True)
            rows = [found[s.name] for s in SYSTEMS if s.name in found]
            FILE.write_text(json.dumps(rows, indent=2) + "\n")


def recorded() -> list[dict[str, Any]]:
    """What was written."""
    return json.loads(FILE.read_text()) if FILE.exists() else []


def section(rows: list[dict[str, Any]]) -> str:
    """The table of the page."""
    lines = [
        "| system | recipe | network | segments of its chains | parameters inside |\n",
        "| --- | --- | --- | --- | --- |\n",
    ]
    for r in rows:
        chains = ", ".join(map(str, r["segments"]))
        recipe = f"[{r['recipe']}](../recipes/{r['recipe']}.yaml)"
        lines.append(
            f"| {r['name']} | {recipe} | {r['made']} | {chains} "
            f"| {r['share']:.0%} of {r['parameters'] / 1e6:.1f} M |\n"
        )
    return "".join(lines)


if __name__ == "__main__":
    main()
