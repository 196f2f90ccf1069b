"""Networks of transformers: by model type, or from a directory whose config.json is transformers'."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import SourceError
from revsurgeon.sources.inputs import InputSpec
from revsurgeon.sources.source import Build, Loaded
from revsurgeon.sources.suggestions import did_you_mean
from revsurgeon.sources.weights import WeightFiles, main_dtype

if TYPE_CHECKING:
    from torch import nn

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
_NO_WEIGHTS = "drawn at random: a model type by itself has no pretrained weights"

_CLASSIFICATION = (
    "ImageClassification",
    "VideoClassification",
    "AudioClassification",
    "SequenceClassification",
)


def build_of_type(model_type: str, num_classes: int | None = None) -> Build:
    """Return the build of an architecture with its default config and a task head.

    Raises:
        SourceError: transformers does not know the type; lists close ones.
    """
    config = _config_class(model_type)()
    return build_of_config(config.to_dict(), num_classes=num_classes)


def build_of_config(
    config: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    trust_remote_code: bool = False,
    code: Callable[[], str] | None = None,
) -> Build:
    """Return the build of a config.json in transformers' format: the class that it names, head included.

    Args:
        num_classes: take a classification head with so many classes instead.
        trust_remote_code: allow a class that the source itself ships.
        code: returns where such a class is read from, as in `Checkpoint.code`.

    Raises:
        SourceError: a model type or class that this version of transformers does not have.
    """
    config = dict(config)
    if num_classes is not None:
        for labels in ("id2label", "label2id"):
            config.pop(labels, None)
        config["num_labels"] = num_classes
    entry, remote = _class_name(config, trust_remote_code, num_classes is not None)
    arguments: dict[str, Any] = {"config": json.loads(json.dumps(config)), "dtype": _dtype_of(config)}
    if remote:
        arguments["remote_code"] = code() if code else None
    return {"library": "transformers", "entry": entry, "arguments": arguments}


def construct(build: Build, config: bytes | None = None, *, trust_remote_code: bool = False) -> nn.Module:
    """Return the network of a build, randomly initialised as transformers does it.

    Args:
        config: a config.json to use instead of the build's own.

    Raises:
        SourceError: a class that needs trust, or that this version of transformers does not have.
    """
    import torch

    settings = json.loads(config) if config is not None else build["arguments"]["config"]
    model_class, config_object = _resolve(build, settings, trust_remote_code)
    dtype = build["arguments"].get("dtype") or _dtype_of(settings)
    with _quiet():
        return model_class._from_config(config_object, dtype=getattr(torch, dtype))


def inputs_of(build: Build, *, trust_remote_code: bool = False) -> InputSpec:
    """Return example inputs from the config and the forward's signature."""
    from revsurgeon.sources.transformers_inputs import derive_inputs

    model_class, config = _resolve(build, build["arguments"]["config"], trust_remote_code)
    return derive_inputs(model_class, config).with_float_dtype(build["arguments"]["dtype"])


def config_of(build: Build) -> bytes:
    """Return a config.json that transformers reads, with the class that it is for."""
    _, config = _resolve(build, build["arguments"]["config"], False)
    config.architectures = [build["entry"]]
    return config.to_json_string(use_diff=False).encode()


@dataclass(frozen=True)
class TransformersLoader:
    """Loads a transformers network.

    Attributes:
        build: what to construct.
        find_weights: returns the checkpoint's files; not called before weights are needed.
        random_weights: draw the weights instead, repeatably.
        head_may_be_new: the source does not name a class, so a checkpoint without the head is complete.
    """

    build: Build
    find_weights: Callable[[], WeightFiles] | None = None
    random_weights: bool = False
    head_may_be_new: bool = False
    trust_remote_code: bool = False

    def architecture(self) -> nn.Module:
        """Return the network on the meta device."""
        from revsurgeon.sources.construction import on_meta

        return on_meta(self._construct)

    def load(self) -> Loaded:
        """Return the network with its weights; transformers converts old checkpoints on the way.

        Raises:
            SourceError: weights that are missing or of another shape.
        """
        from revsurgeon.sources.construction import seeded

        if self.random_weights or self.find_weights is None:
            with seeded():
                return Loaded(self._construct(), notes=() if self.random_weights else (_NO_WEIGHTS,))
        import torch

        files = self.find_weights()
        tensors = files.tensors()
        dtype = main_dtype(tensors) or self.build["arguments"]["dtype"]
        model_class, config = _resolve(self.build, self.build["arguments"]["config"], self.trust_remote_code)
        with seeded(), _quiet(), _loading_errors(self.build["entry"]):
            module, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=getattr(torch, dtype),
                ignore_mismatched_sizes=True,  # they are reported below, all at once
                output_loading_info=True,
                local_files_only=True,
            )
        notes = self._judge(model_class, report)
        _restore_precision(module, tensors)
        return Loaded(module, files.hashes(), tuple(notes), dtype)

    def _construct(self) -> nn.Module:
        return construct(self.build, trust_remote_code=self.trust_remote_code)

    def _judge(self, model_class: Any, report: Mapping[str, Any]) -> list[str]:
        """Return notes on what did not match, or raise where it may not be so."""
        missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
        mismatched = sorted(tuple(item) for item in report["mismatched_keys"])
        base = model_class.base_model_prefix
        if self.head_may_be_new and model_class.base_model_prefix:
            new = {
                name
                for name in [*missing, *(item[0] for item in mismatched)]
                if not name.startswith(f"{base}.")
            }
        else:
            new = set()
        lines = [f"missing: {name}" for name in missing if name not in new]
        lines += [
            f"{name}: shape {list(found)} in the checkpoint, {list(wanted)} in the network"
            for name, found, wanted in mismatched
            if name not in new
        ]
        if lines:
            raise _misfit(self.build["entry"], lines + [f"left over: {name}" for name in unexpected])
        notes = [f"newly initialised, not pretrained: {', '.join(sorted(new))}"] if new else []
        if unexpected:
            notes.append(f"in the checkpoint, but not in {self.build['entry']}: {', '.join(unexpected)}")
        return notes


def _class_name(config: Mapping[str, Any], trust_remote_code: bool, classifier: bool) -> tuple[str, bool]:
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
    config_class = _config_class(model_type)
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


def _resolve(build: Build, settings: Mapping[str, Any], trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the class of a build and its config object."""
    if "remote_code" in build["arguments"]:
        return _resolve_remote(build, settings, trust_remote_code)
    model_class = _library_class(build["entry"])
    if model_class is None:
        raise SourceError(
            f"this version of transformers has no class {build['entry']!r}.",
            hint="Install the version that the manifest names.",
        )
    return model_class, _config_object(_config_class(settings.get("model_type")), settings)


def _resolve_remote(build: Build, settings: Mapping[str, Any], trust_remote_code: bool) -> tuple[Any, Any]:
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
            _remote_class(reference, code) if reference else _config_class(settings.get("model_type"))
        )
    except (OSError, KeyError, ImportError, AttributeError) as error:
        raise SourceError(f"the code of {name!r} cannot be loaded.", where=str(error)) from error
    return model_class, _config_object(config_class, settings)


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
    references = (config.get("auto_map") or {}).values()
    flat = [item for entry in references for item in (entry if isinstance(entry, list) else [entry])]
    return {item.rpartition(".")[2]: item for item in flat if isinstance(item, str)}


def _library_class(name: str) -> Any:
    """Return the network class of this name in transformers, or None."""
    import transformers

    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _config_class(model_type: Any) -> Any:
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


def _config_object(config_class: Any, settings: Mapping[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    try:
        return config_class.from_dict(copy.deepcopy(dict(settings)))
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        reason = str(error) or repr(error)
        raise SourceError("config.json is not a config that transformers accepts.", where=reason) from None


def _dtype_of(config: Mapping[str, Any]) -> str:
    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    return named.removeprefix("torch.") if isinstance(named, str) else "float32"


def _restore_precision(module: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Put back tensors that a checkpoint of mixed dtypes holds in more precision than the network."""
    for name, parameter in module.named_parameters():
        stored = tensors.get(name)
        if stored is None or stored.shape != parameter.shape or not stored.is_floating_point():
            continue
        if stored.element_size() > parameter.element_size():
            parameter.data = stored


def _misfit(name: str, lines: list[str]) -> SourceError:
    more = [f"... and {len(lines) - 20} more"] if len(lines) > 20 else []
    return SourceError(
        f"the checkpoint does not fit {name!r}, the class that the config asks for.",
        where="\n".join(lines[:20] + more),
        hint="Check that config.json belongs to these weights. The architecture alone: --random-weights.",
    )


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "loading state_dict" not in str(error) and "conversion" not in str(error):
            raise
        raise _misfit(name, [line.strip() for line in str(error).splitlines()]) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' reports and progress bars away; what matters is an error or a note here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
