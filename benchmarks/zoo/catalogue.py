"""Which networks the sweep looks at: names of three libraries, and what they are made with.

Only the benchmark knows these names. What is found in a network is decided by its dataflow alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIBRARIES = ("timm", "torchvision", "transformers")

_TIMM = Path(__file__).with_name("timm_members.json")


@dataclass(frozen=True)
class Entry:
    """One network of the sweep.

    Attributes:
        library: one of `LIBRARIES`.
        name: of the model, or the model type.
        family: the group that it stands for.
        kind: what its inputs are: "image", "clip", "detection" or "config" (told by its configuration).
        settings: arguments of its constructor.
    """

    library: str
    name: str
    family: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """As a source is written on the command line."""
        return f"{self.library}:{self.name}"


def entries() -> list[Entry]:
    """All networks of the sweep."""
    return [*timm_entries(), *torchvision_entries(), *transformers_entries()]


def timm_entries() -> list[Entry]:
    """The smallest member of every family (module) of timm, and a deeper one where it has no runs."""
    members: dict[str, list[str]] = json.loads(_TIMM.read_text())
    few: dict[str, dict[str, Any]] = {name: {"depth": 4} for name in _FEWER_BLOCKS}
    few["resnest26d"] = {"drop_path_rate": 0.0}  # timm draws it there and does not use it
    return [
        Entry("timm", name, family, "image", few.get(name, {}))
        for family, names in members.items()
        for name in names
    ]


def torchvision_entries() -> list[Entry]:
    """The smallest member of every family of torchvision's models."""
    small = {"min_size": 64, "max_size": 64}
    few = {f"rpn_post_nms_top_n_{mode}": 20 for mode in ("train", "test")}
    few |= {"box_detections_per_img": 4, "box_batch_size_per_image": 8}
    return [
        *(Entry("torchvision", name, "classification", "image") for name in _CLASSIFICATION),
        *(Entry("torchvision", name, "video", "clip", dict(_CLIP_SIZES.get(name, {}))) for name in _VIDEO),
        *(Entry("torchvision", name, "segmentation", "image", {"aux_loss": True}) for name in _SEGMENTATION),
        *(
            Entry("torchvision", name, "detection", "detection", small | (few if "rcnn" in name else {}))
            for name in _DETECTION
        ),
    ]


def transformers_entries() -> list[Entry]:
    """Architectures of transformers; `shrunk` makes their configurations small."""
    return [Entry("transformers", name, kind, "config") for kind, names in _TYPES.items() for name in names]


_FEWER_BLOCKS = (
    *("beit_base_patch16_224", "deepseek_vit_412m", "gemma4_vit_167m", "naflexvit_base_patch16_parfac_gap"),
    *("qwen3_vit_88m", "samvit_base_patch16_224"),
)
_CLASSIFICATION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet"),
    *("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *("swin_t", "swin_v2_t", "vgg11", "vit_b_32", "wide_resnet50_2"),
)
_VIDEO = ("mc3_18", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t")
_CLIP_SIZES = {name: {"spatial_size": (64, 64), "temporal_size": 8} for name in ("mvit_v1_b", "mvit_v2_s")}
"""Of networks whose positions are made for one size of clip."""
_SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50")
_DETECTION = (
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn", "fcos_resnet50_fpn"),
    *("keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"),
    *("retinanet_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"),
)
_TYPES = {
    "vision": (
        *(
            "beit",
            "bit",
            "convnext",
            "convnextv2",
            "cvt",
            "data2vec-vision",
            "deit",
            "depth_anything",
            "detr",
        ),
        *("deformable_detr", "conditional_detr", "dinov2", "dinov2_with_registers", "dinov3_convnext"),
        *("dinov3_vit", "donut-swin", "dpt", "efficientnet", "focalnet", "glpn", "hgnet_v2", "hiera"),
        *("ijepa", "imagegpt", "levit", "mask2former", "mobilenet_v1"),
        *("mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt", "pvt_v2", "regnet", "resnet"),
        *("segformer", "swiftformer", "swin", "swinv2"),
        *("upernet", "vit", "vit_mae", "vit_msn", "vitdet", "yolos"),
    ),
    "video": ("timesformer", "videomae", "vivit", "vjepa2"),
    "text": (
        *("albert", "bert", "big_bird", "biogpt", "bloom", "canine", "codegen", "cohere"),
        *("convbert", "ctrl", "deberta", "deberta-v2", "distilbert", "electra", "falcon"),
        *("flaubert", "fnet", "funnel", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode"),
        *(
            "gpt_neo",
            "gpt_neox",
            "gptj",
            "granite",
            "ibert",
            "layoutlm",
            "llama",
        ),
        *("luke", "mamba", "megatron-bert", "mistral", "mixtral", "mobilebert", "modernbert", "mpnet", "mpt"),
        *("nystromformer", "olmo", "olmo2", "opt", "persimmon", "phi", "phi3", "qwen2"),
        *("qwen3", "qwen3_moe", "roberta", "roformer", "smollm3"),
        *("squeezebert", "stablelm", "starcoder2", "xglm", "xlm", "xlnet"),
    ),
    "encoder-decoder": (
        *("bart", "longt5", "m2m_100", "marian", "mbart", "mt5", "pegasus"),
        *("prophetnet", "switch_transformers", "t5", "umt5"),
    ),
    "audio": (
        *("audio-spectrogram-transformer", "data2vec-audio", "hubert", "sew", "speech_to_text"),
        *(
            "unispeech",
            "unispeech-sat",
            "wav2vec2",
            "wav2vec2-bert",
            "wav2vec2-conformer",
            "wavlm",
            "whisper",
        ),
    ),
    "several modalities": (
        *("blip", "clip", "clip_vision_model"),
        *("clip_text_model", "groupvit", "owlvit", "siglip"),
        *("siglip_vision_model", "vilt", "visual_bert", "xclip"),
    ),
    "time series": ("patchtsmixer", "patchtst"),
}
