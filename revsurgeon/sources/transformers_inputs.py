"""Example inputs of a transformers network, from its config's attributes and its forward's parameters.

What an input means is told by its name, which transformers keeps the same across architectures. Sizes come
from the config, or from the config of the tower that takes the input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from revsurgeon.sources.inputs import Input, InputSpec

_TOKENS = 32
_IMAGE = 224
_SAMPLING_RATE = 16000

# How a config names the index that stands for an image, a video or a sound among tokens. Where there is one,
# the network reads text alone just as well, and the placeholder needs a processor to be placed.
_PLACEHOLDERS = (
    "image_token_id",
    "image_token_index",
    "video_token_id",
    "audio_token_id",
    "audio_token_index",
)
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", *_PLACEHOLDERS)


def derive_inputs(model_class: Any, config: Any) -> InputSpec:
    """Return the inputs of a network of `model_class` with this config; empty where none can be derived."""
    signature = inspect.signature(model_class.forward).parameters
    parameters = tuple(
        name for name, parameter in signature.items() if name != "self" and parameter.kind not in (2, 4)
    )
    entries: dict[str, Input] = {}
    for name in parameters:
        if name in _wanted(model_class, config, parameters, signature) and name in _SHAPES:
            entries[name] = _SHAPES[name](config)
    return InputSpec(entries, parameters)


def _wanted(model_class: Any, config: Any, parameters: tuple[str, ...], signature: Any) -> set[str]:
    """Return the parameters that an example must give."""
    main = model_class.main_input_name
    wanted = {main} if isinstance(main, str) else set(main)
    wanted |= {name for name in parameters if signature[name].default is inspect.Parameter.empty}
    modalities = model_class.input_modalities
    modalities = {modalities} if isinstance(modalities, str) else set(modalities)
    if len(modalities) > 1 and not any(_has(config, name) for name in _PLACEHOLDERS):
        by_modality = {
            "text": "input_ids",
            "image": "pixel_values",
            "audio": "input_features",
            "video": "pixel_values",
        }
        wanted |= {by_modality[modality] for modality in modalities if modality in by_modality}
    if "input_ids" in wanted:
        wanted.add("attention_mask")
    if getattr(config, "is_encoder_decoder", False):
        wanted.add("decoder_input_ids")
    return wanted


def _pixels(config: Any) -> Input:
    """Pixels (B, C, H, W), or (B, T, C, H, W) where the config has a number of frames."""
    height, width = _image_size(config)
    channels = _first(config, "num_channels", "in_channels", "in_chans", default=3)
    frames = _first(config, "num_frames", "frames_per_clip", default=None)
    return Input((1, frames, channels, height, width) if frames else (1, channels, height, width))


def _image_size(config: Any) -> tuple[int, int]:
    size = _first(config, "image_size", "img_size", "crop_size", "input_size", default=_IMAGE)
    if isinstance(size, dict):
        size = (size.get("height", _IMAGE), size.get("width", _IMAGE))
    if isinstance(size, int):
        return size, size
    sizes = [int(value) for value in size]
    return sizes[-2 if len(sizes) > 1 else -1], sizes[-1]


def _tokens(config: Any) -> Input:
    """Token ids (B, L), none of which has a meaning of its own."""
    text = config.get_text_config()
    high = _first(text, "vocab_size", default=None) or _first(config, "vocab_size", default=100)
    special = {getattr(part, name, None) for part in (config, text) for name in _SPECIAL}
    avoid = sorted(value for value in special if isinstance(value, int) and 0 <= value < high)
    return Input((1, _length(text)), "int64", "tokens", high=high, avoid=tuple(avoid))


def _mask(config: Any) -> Input:
    return Input((1, _length(config.get_text_config())), "int64", "ones")


def _length(config: Any) -> int:
    longest = _first(
        config, "max_position_embeddings", "n_positions", "max_target_positions", default=_TOKENS
    )
    return min(_TOKENS, longest) if isinstance(longest, int) and longest > 2 else _TOKENS


def _waveform(config: Any) -> Input:
    """A second of sound (B, samples), or a spectrogram (B, frames, mel bins) of the config's sizes."""
    bins = _first(config, "num_mel_bins", default=None)
    if bins and _has(config, "max_length"):
        return Input((1, config.max_length, bins))
    return Input((1, _first(config, "sampling_rate", default=_SAMPLING_RATE)))


def _spectrogram(config: Any) -> Input:
    """Features of sound: (B, mel bins, frames) for a fixed window, else (B, frames, features)."""
    bins = _first(config, "num_mel_bins", default=None)
    positions = _first(config, "max_source_positions", default=None)
    per_frame = _first(config, "input_feat_per_channel", "feature_projection_input_dim", default=None)
    if per_frame:
        return Input((1, 128, per_frame))
    if bins and positions:
        return Input((1, bins, 2 * positions))
    return Input((1, 128, bins or 80))


def _series(config: Any) -> Input:
    """Values of a time series (B, T, channels)."""
    length = _first(config, "context_length", "prediction_length", default=64)
    return Input((1, length, _first(config, "num_input_channels", "input_size", default=1)))


_SHAPES: dict[str, Callable[[Any], Input]] = {
    "pixel_values": _pixels,
    "pixel_values_videos": _pixels,
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "attention_mask": _mask,
    "input_values": _waveform,
    "input_features": _spectrogram,
    "past_values": _series,
}


def _first(config: Any, *names: str, default: Any) -> Any:
    """Return the first of these attributes that the config, or else one of its towers, sets."""
    for part in _parts(config):
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def _has(config: Any, name: str) -> bool:
    return _first(config, name, default=None) is not None


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None:
            yield from _parts(part)
