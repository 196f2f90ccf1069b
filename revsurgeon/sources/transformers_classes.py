"""Which transformers class and config object a config.json stands for, its own code included if trusted."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from revsurgeon.errors import SourceError
from revsurgeon.sources.reach import check_reach
from revsurgeon.sources.source import Build
from revsurgeon.sources.suggestions import did_you_mean

# Tasks in the order in which a head is chosen for a config that names none: what a classifier is finetuned
# for, then what a language model is, then anything with a head, then the bare network.
_TASKS = (
    "ImageClassification",
    "VideoClassification",
    "AudioClassification",
    "MaskedLM",
    "CausalLM",
    "Seq2SeqLM",
    "SpeechSeq2Seq",
    "SequenceClassification",
    "SemanticSegmentation",
    "ObjectDetection",
    "DepthEstimation",
    "ImageTextToText",
    "TimeSeriesPrediction",
    "MaskGeneration",
    "CTC",
    "PreTraining",
)
_MALFORMED = (TypeError, ValueError, LookupError, AttributeError, RecursionError)
"""What config classes raise over settings that make no sense."""

_CLASSIFICATION = (
    "ImageClassification",
    "VideoClassification",
    "AudioClassification",
    "SequenceClassification",
)


def class_name(config: Mapping[str, Any], trust_remote_code: bool, classifier: bool) -> tuple[str, bool]:
    """Return the name of the class to build, and whether it is code that the source ships."""
    import transformers

    named = next(iter(config.get("architectures") or []), None)
    if named is not None and not isinstance(named, str):
        raise SourceError("`architectures` in config.json does not name a class.", where=repr(named))
    if named and _library_class(named) is None:
        if named in _remote_classes(config):
            if trust_remote_code:
                return named, True
            raise SourceError(
                f"{named!r} is not part of transformers: the source ships its own Python code.",
                hint="Read that code, and if you trust it, add --trust-remote-code.",
            )
        raise SourceError(
            f"transformers {transformers.__version__} has no class {named!r}, which config.json names.",
            hint=did_you_mean(
                named, dir(transformers), "", "Install the version of transformers that wrote it."
            ),
        )
    model_type = config.get("model_type")
    if named and model_type is None:
        config_class = _library_class(named).config_class
    else:
        config_class = config_class_of(model_type)
    if named and not classifier:
        return named, False
    tasks = _CLASSIFICATION if classifier else _TASKS
    for task in tasks:
        mapping = getattr(transformers, f"AutoModelFor{task}")._model_mapping
        if config_class in mapping:
            return _first(mapping[config_class]).__name__, False
    if classifier:
        raise SourceError(f"transformers has no classification head for {model_type!r}.")
    mapping = transformers.AutoModel._model_mapping
    if config_class not in mapping:
        raise SourceError(f"transformers has no network for the config {model_type!r}.")
    return _first(mapping[config_class]).__name__, False


def _first(classes: Any) -> Any:
    return classes[0] if isinstance(classes, tuple | list) else classes


def class_and_config(build: Build, settings: Mapping[str, Any], trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the class of a build and its config object."""
    if "remote_code" in build["arguments"]:
        return _remote_class_and_config(build, settings, trust_remote_code)
    model_class = _library_class(build["entry"])
    if model_class is None:
        raise SourceError(
            f"this version of transformers has no class {build['entry']!r}.",
            hint="Install the version that the manifest names.",
        )
    # Early configs name no type, but the class knows which config it takes.
    model_type = settings.get("model_type")
    config_class = model_class.config_class if model_type is None else config_class_of(model_type)
    return model_class, _config_object(config_class, settings, trust_remote_code)


def _remote_class_and_config(
    build: Build, settings: Mapping[str, Any], trust_remote_code: bool
) -> tuple[Any, Any]:
    name, code = build["entry"], build["arguments"]["remote_code"]
    if not trust_remote_code:
        raise SourceError(
            f"{name!r} is Python code that the source ships.",
            hint="Read that code, and if you trust it, add --trust-remote-code.",
        )
    try:
        model_class = _remote_class(_remote_classes(settings)[name], code)
        reference = (settings.get("auto_map") or {}).get("AutoConfig")
        config_class = (
            _remote_class(reference, code) if reference else config_class_of(settings.get("model_type"))
        )
    except (OSError, KeyError, ImportError, AttributeError) as error:
        raise SourceError(f"the code of {name!r} cannot be loaded.", where=str(error)) from error
    return model_class, _config_object(config_class, settings, trust_remote_code)


def _remote_class(reference: str, code: str) -> Any:
    """Import `module.Class` from a directory or from `ORG/NAME@COMMIT` in the download cache."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    place, _, at = (code, "", "") if Path(code).is_dir() else code.partition("@")
    commit = at or None
    return get_class_from_dynamic_module(
        reference, place, revision=commit, code_revision=commit, local_files_only=True
    )


def _remote_classes(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what a config says of classes in its own repository: class name to `module.Class`."""
    auto_map = config.get("auto_map")
    references = auto_map.values() if isinstance(auto_map, Mapping) else ()
    flat = [item for entry in references for item in (entry if isinstance(entry, list) else [entry])]
    return {item.rpartition(".")[2]: item for item in flat if isinstance(item, str)}


def _library_class(name: str) -> Any:
    """Return the network class of this name in transformers, or None."""
    import transformers

    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def config_class_of(model_type: Any) -> Any:
    """Return the config class of a model type.

    Raises:
        SourceError: this version of transformers does not know the type; lists close ones.
    """
    import transformers

    if not isinstance(model_type, str):
        raise SourceError(
            "config.json has no `model_type` that says which architecture it is for.",
            hint="Check that it is the config.json of a transformers or timm network.",
        )
    try:
        return transformers.CONFIG_MAPPING[model_type]
    except KeyError:
        raise SourceError(
            f"transformers {transformers.__version__} has no architecture {model_type!r}.",
            hint=did_you_mean(
                model_type,
                list(transformers.CONFIG_MAPPING.keys()),
                "transformers:",
                "A newer version may have it.",
            ),
        ) from None


def _config_object(config_class: Any, settings: Mapping[str, Any], trust_remote_code: bool) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    check_reach(settings, trust_remote_code=trust_remote_code)
    try:
        return config_class.from_dict(copy.deepcopy(dict(settings)))
    except (StrictDataclassError, *_MALFORMED) as error:
        reason = (str(error) or repr(error))[:2000]
        raise SourceError("config.json is not a config that transformers accepts.", where=reason) from None


def dtype_of(config: Mapping[str, Any]) -> str:
    """Return the dtype that a config names, by its old or its new key."""
    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    return named.removeprefix("torch.") if isinstance(named, str) else "float32"
