"""Networks of transformers: by model type, or from a directory whose config.json is transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import SourceError
from revsurgeon.sources.inputs import InputSpec
from revsurgeon.sources.source import Build, Loaded
from revsurgeon.sources.tensors import main_dtype
from revsurgeon.sources.transformers_classes import (
    class_and_config,
    class_name,
    config_class_of,
    dtype_of,
)
from revsurgeon.sources.weights import WeightFiles

if TYPE_CHECKING:
    from torch import nn

_NO_WEIGHTS = "drawn at random: a model type by itself has no pretrained weights"


def build_of_type(model_type: str, num_classes: int | None = None) -> Build:
    """Return the build of an architecture with its default config and a task head.

    Raises:
        SourceError: transformers does not know the type; lists close ones.
    """
    config = config_class_of(model_type)()
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
    entry, remote = class_name(config, trust_remote_code, num_classes is not None)
    arguments: dict[str, Any] = {"config": json.loads(json.dumps(config)), "dtype": dtype_of(config)}
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
    model_class, config_object = class_and_config(build, settings, trust_remote_code)
    dtype = build["arguments"].get("dtype") or dtype_of(settings)
    with _quiet():
        return model_class._from_config(config_object, dtype=getattr(torch, dtype))


def inputs_of(build: Build, *, trust_remote_code: bool = False) -> InputSpec:
    """Return example inputs from the config and the forward's signature."""
    from revsurgeon.sources.transformers_inputs import derive_inputs

    model_class, config = class_and_config(build, build["arguments"]["config"], trust_remote_code)
    return derive_inputs(model_class, config).with_float_dtype(build["arguments"]["dtype"])


def config_of(build: Build) -> bytes:
    """Return a config.json that transformers reads, with the class that it is for."""
    _, config = class_and_config(build, build["arguments"]["config"], False)
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
        from revsurgeon.sources.construction import building, on_meta

        with building(self.build["entry"]):
            return on_meta(self._construct)

    def load(self) -> Loaded:
        """Return the network with its weights; transformers converts old checkpoints on the way.

        Raises:
            SourceError: weights that are missing or of another shape.
        """
        from revsurgeon.sources.construction import building, seeded

        entry = self.build["entry"]
        if self.random_weights or self.find_weights is None:
            with building(entry), seeded():
                return Loaded(self._construct(), notes=() if self.random_weights else (_NO_WEIGHTS,))
        import torch

        files = self.find_weights()
        tensors = files.tensors()
        dtype = main_dtype(tensors) or self.build["arguments"]["dtype"]
        model_class, config = class_and_config(
            self.build, self.build["arguments"]["config"], self.trust_remote_code
        )
        with building(entry), seeded(), _quiet(), _loading_errors(entry):
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
