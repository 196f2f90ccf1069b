"""Make a transformers configuration small, by what its attributes mean and not by whose they are.

All widths are divided by one factor, so that whatever has to fit together still does. Depths become three
(stages: two), vocabularies a hundred words, images a few patches, clips four frames.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

VOCABULARY, POSITIONS, FRAMES = 128, 64, 4
_FIRST_SPECIAL = 100
_IMAGES = ("image_size", "img_size", "input_size", "crop_size")

_DEPTH = re.compile(r"(^|_)(layers?|depth|blocks)$|^n_layers?$|^num_hidden_layers$")
_NOT_DEPTH = re.compile(r"^(num_feat_extract|num_conv|adapter|conv|first|num_adapter|linear|feature)")
_STAGES = re.compile(r"(^|_)(depths?|layer_depths|block_sizes)$")
_POSITIONS = re.compile(r"max_(source_|target_|2d_)?position|^n_positions$|^n_ctx$|^max_length$|^max_seq")
_TOKEN = re.compile(r"(_token_id|_token_index|_token_ids|_idx)$")
_WIDTH = re.compile(
    r"(dim|dims|hidden_sizes?|_size|_sizes|_width|width|d_model|d_ff|d_kv|n_embd|n_inner|_rank|_channels)$"
    r"|^(hidden|intermediate|emb|embedding|mrope)_|^inner_dim|^embed"
)
_NOT_WIDTH = re.compile(
    r"vocab|image|img|patch|window|kernel|stride|tubelet|num_channels|in_chans|group|input|batch|chunk|position"
    r"|crop|pool|^depths|block_size|memory|frame|mel|tile|sampling|window|context|ratio|scale_dim|token|pad"
)


def shrink(config: Any, factor: int, depth: int = 3, image: int | None = 64) -> None:
    """Change a configuration and those inside it, in place.

    Args:
        config: a transformers configuration.
        factor: by which widths are divided; 1 leaves them.
        depth: how many layers are left.
        image: about how large images are, in pixels; None leaves them.
    """
    how = _How(factor, depth, image)
    for part in _parts(config):
        _shrink_one(part, how)


@dataclass
class _How:
    factor: int
    depth: int
    image: int | None
    specials: dict[int, int] = field(default_factory=dict)


def _parts(config: Any) -> list[Any]:
    from transformers import PretrainedConfig

    inside = [v for v in vars(config).values() if isinstance(v, PretrainedConfig)]
    return [config, *(part for value in inside for part in _parts(value))]


def _shrink_one(config: Any, how: _How) -> None:
    own = dict(vars(config))
    depths = {v for n, v in own.items() if _is_depth(n, v, how)}
    stages = own.get("stage_names")
    if stages and len(stages) - 1 in depths:
        wanted = min(len(own.get("_out_features") or []), how.depth)  # a head may want as many as before
        config.stage_names = stages[: how.depth + 1]
        config._out_indices = list(range(how.depth + 1 - wanted, how.depth + 1))
        config._out_features = [stages[i] for i in config._out_indices]
    named = ("stage_names", "_out_indices", "_out_features") if stages else ()
    for name, value in own.items():
        if name in named:
            continue
        new = _new_value(name, value, config, how)
        if isinstance(new, (list, tuple)) and len(new) in depths and len(new) > how.depth:
            new = type(new)(new[: how.depth])
        if new != value:
            setattr(config, name, new)


def _is_depth(name: str, value: Any, how: _How) -> bool:
    plain = isinstance(value, int) and not isinstance(value, bool) and value > how.depth
    return plain and bool(_DEPTH.search(name)) and not _NOT_DEPTH.search(name)


def _new_value(name: str, value: Any, config: Any, how: _How) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            return value
        return {k: _new_value(k, v, config, how) for k, v in value.items()}
    if _TOKEN.search(name):
        return _special(value, how.specials)
    if isinstance(value, (list, tuple)):
        return _new_list(name, value, config, how)
    if not isinstance(value, int):
        return value
    if _is_depth(name, value, how):
        return how.depth
    if "vocab_size" in name:
        return min(value, VOCABULARY)
    if _POSITIONS.search(name):
        return min(value, POSITIONS)
    if name in _IMAGES:
        return min(value, _image(config, how) or value)
    if name in ("num_frames", "frames_per_clip"):
        return min(value, FRAMES)
    if "experts" in name and "per" not in name and value > 8:
        return 8
    return _width(name, value, how.factor)


def _new_list(name: str, value: Any, config: Any, how: _How) -> Any:
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return value
    if _STAGES.search(name):
        return type(value)(min(v, how.depth - 1) for v in value)
    if name in _IMAGES:
        return type(value)(min(v, _image(config, how) or v) for v in value)
    if "indices" in name and len(value) <= how.depth <= max(value, default=0):
        return type(value)(range(how.depth - len(value), how.depth))
    return type(value)(_width(name, v, how.factor) for v in value)


def _width(name: str, value: int, factor: int) -> int:
    wide = _WIDTH.search(name) and not _NOT_WIDTH.search(name)
    return value // factor if wide and value % factor == 0 and value // factor >= 4 else value


def _image(config: Any, how: _How) -> int | None:
    """A multiple of the patches' size."""
    if how.image is None:
        return None
    patch = getattr(config, "patch_size", None) or 4
    patch = patch if isinstance(patch, int) else patch[-1]
    if patch < 4:
        return how.image // 4 * patch
    return how.image if how.image % patch == 0 else 4 * patch


def _special(value: Any, specials: dict[int, int]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_special(v, specials) for v in value)
    if not isinstance(value, int) or value < _FIRST_SPECIAL:
        return value
    return specials.setdefault(value, _FIRST_SPECIAL + len(specials) % (VOCABULARY - _FIRST_SPECIAL))
