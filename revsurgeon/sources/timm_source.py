"""Networks of timm: by name, or from a directory whose config.json is timm's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import SourceError
from revsurgeon.sources.inputs import Input, InputSpec
from revsurgeon.sources.reach import check_reach
from revsurgeon.sources.source import Build, Loaded
from revsurgeon.sources.suggestions import did_you_mean
from revsurgeon.sources.tensors import main_dtype, read_safetensors
from revsurgeon.sources.torch_hub import download_errors
from revsurgeon.sources.weights import WeightFiles

if TYPE_CHECKING:
    from torch import nn

# Keys of a pretrained_cfg that say where weights come from; an architecture has none of them.
_LOCATIONS = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")


def is_timm_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is in timm's format; transformers' has a `model_type` or `architectures`."""
    return "architecture" in config and "model_type" not in config and "architectures" not in config


def build_of_name(name: str, num_classes: int | None = None) -> Build:
    """Return the build of a model that timm knows by name, `architecture[.tag]`.

    Raises:
        SourceError: no such model or tag; lists close names.
    """
    import timm

    if not timm.is_model(name):
        raise _unknown(name)
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        raise _unknown(name) from None
    if known is None:
        raise _unknown(name)
    return _build(name.partition(".")[0], known.to_dict(), {}, num_classes)


def build_of_config(config: Mapping[str, Any], num_classes: int | None = None) -> Build:
    """Return the build of a config.json in timm's format, read as timm reads it.

    Raises:
        SourceError: an architecture that this version of timm does not have, or a malformed config.
    """
    import timm
    from timm.models._hub import _parse_model_cfg

    try:
        pretrained_cfg, name, arguments = _parse_model_cfg(json.loads(json.dumps(config)), {})
        if not isinstance(name, str) or not timm.is_model(name):
            raise _unknown(str(name))
        return _build(name, pretrained_cfg, arguments, num_classes)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise SourceError("config.json is not a config that timm can read.", where=repr(error)) from None


def construct(build: Build) -> nn.Module:
    """Return the network of a build, randomly initialised as timm does it."""
    return _create(build, pretrained=False)


def inputs_of(build: Build) -> InputSpec:
    """Return the image that the network was made for, from its pretrained_cfg and its own arguments."""
    cfg = build["arguments"].get("pretrained_cfg", {})
    arguments = build["arguments"].get("model_args", {})
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    size = arguments.get("img_size") or (height, width)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (1, arguments.get("in_chans") or channels, height, width)
    return InputSpec({"0": Input(shape)}, parameters=("x",))


def config_of(build: Build) -> bytes:
    """Return a config.json in timm's own format, so that timm can load what is written beside it."""
    arguments = build["arguments"]
    cfg = arguments.get("pretrained_cfg", {})
    num_classes = arguments.get("num_classes")
    config: dict[str, Any] = {
        "architecture": build["entry"],
        "num_classes": cfg.get("num_classes", 1000) if num_classes is None else num_classes,
    }
    if model_args := arguments.get("model_args"):
        config["model_args"] = model_args
    config["pretrained_cfg"] = cfg
    return (json.dumps(config, indent=2) + "\n").encode()


@dataclass(frozen=True)
class Located:
    """Where a checkpoint lies, as timm is told about it.

    Attributes:
        cfg: entries for the pretrained_cfg.
        hashes: returns the sha256 of every file, once they were read.
        commit: of a Hub repository.
        foreign: whether the file is in a format of its own, which the network copies into itself.
    """

    cfg: Mapping[str, Any]
    hashes: Callable[[], dict[str, str]]
    commit: str | None = None
    foreign: bool = False


def locate_files(files: WeightFiles, commit: str | None = None) -> Located:
    """Return where timm finds a checkpoint on the disk; of shards it gets the tensors themselves."""
    cfg = {"file": str(files.files[0])} if files.index is None else {"state_dict": files.tensors()}
    return Located(cfg, files.hashes, commit)


@dataclass(frozen=True)
class TimmLoader:
    """Loads a timm network.

    Attributes:
        build: what to construct.
        locate: returns where the checkpoint is; not called before weights are needed.
        random_weights: draw the weights instead, repeatably.
        cache_dir: where timm's own downloads go; None for their default.
    """

    build: Build
    locate: Callable[[], Located]
    random_weights: bool = False
    cache_dir: str | None = None

    def architecture(self) -> nn.Module:
        """Return the network on the meta device."""
        from revsurgeon.sources.construction import building, on_meta

        with building(self.build["entry"]):
            return on_meta(lambda: construct(self.build))

    def load(self) -> Loaded:
        """Return the network with its weights; timm converts old checkpoints on the way.

        Raises:
            SourceError: weights that are missing, left over or of another shape.
        """
        from revsurgeon.sources.construction import building, seeded, with_weights

        entry = self.build["entry"]
        if self.random_weights:
            with building(entry), seeded():
                return Loaded(construct(self.build))
        located = self.locate()
        absent: list[str] = []

        def load() -> nn.Module:
            return _create(self.build, pretrained=True, cache_dir=self.cache_dir, **located.cfg)

        url = str(located.cfg.get("url"))
        with building(entry), _loading_errors(entry), download_errors(url), _quiet(), _reading_once():
            if located.foreign:
                with seeded():
                    module = load()
            else:
                module, absent = with_weights(load, lambda: construct(self.build))
        _forget_location(module)
        notes = self._judge(absent)
        dtype = main_dtype(dict(module.named_parameters()))
        return Loaded(module, located.hashes(), notes, dtype, located.commit)

    def _judge(self, absent: list[str]) -> tuple[str, ...]:
        """Return notes on parameters that the checkpoint did not have; only those of a head may be absent."""
        classifier = self.build["arguments"].get("pretrained_cfg", {}).get("classifier") or ()
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        if strange := [name for name in absent if name.rpartition(".")[0] not in heads]:
            raise _misfit(self.build["entry"], [f"missing: {name}" for name in strange])
        return (f"newly initialised, not pretrained: {', '.join(absent)}",) if absent else ()


def _build(
    name: str, cfg: Mapping[str, Any], model_args: Mapping[str, Any], num_classes: int | None
) -> Build:
    arguments: dict[str, Any] = {"pretrained_cfg": {k: v for k, v in cfg.items() if k not in _LOCATIONS}}
    if model_args:
        arguments["model_args"] = dict(model_args)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    return {"library": "timm", "entry": name, "arguments": json.loads(json.dumps(arguments))}


def _create(build: Build, *, pretrained: bool, cache_dir: str | None = None, **location: Any) -> nn.Module:
    import timm

    arguments = build["arguments"]
    check_reach({"architecture": build["entry"], **arguments})
    cfg = {**arguments.get("pretrained_cfg", {}), **location}
    kwargs = dict(arguments.get("model_args", {}))
    if "num_classes" in arguments:
        kwargs["num_classes"] = arguments["num_classes"]
    return timm.create_model(
        build["entry"], pretrained=pretrained, pretrained_cfg=cfg or None, cache_dir=cache_dir, **kwargs
    )


def _forget_location(module: nn.Module) -> None:
    """Take the path or the tensors out of the network's pretrained_cfg; they would outlive the loading."""
    cfg = getattr(module, "pretrained_cfg", None)
    if isinstance(cfg, dict):
        for key in _LOCATIONS:
            cfg.pop(key, None)


@contextmanager
def _reading_once() -> Iterator[None]:
    """Have timm read safetensors as other sources do: mapped and then aligned, they would be there twice."""
    import safetensors.torch

    original = safetensors.torch.load_file
    setattr(safetensors.torch, "load_file", lambda file, device="cpu": read_safetensors(Path(file)))  # noqa: B010
    try:
        yield
    finally:
        setattr(safetensors.torch, "load_file", original)  # noqa: B010


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep timm's report about keys from the terminal; what matters of it is an error or a note here."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # load_state_dict and timm's loader
        if "allocate memory" in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        raise _misfit(name, lines[1:] or lines) from None


def _misfit(name: str, lines: list[str]) -> SourceError:
    shown = [line if len(line) < 400 else line[:400] + " ..." for line in lines[:20]]
    return SourceError(
        f"the checkpoint does not fit the architecture {name!r}.",
        where="\n".join(shown),
        hint="Check that config.json belongs to these weights: architecture, num_classes and model_args.",
    )


def _unknown(name: str) -> SourceError:
    import timm

    known = timm.list_models() if "." not in name else timm.list_pretrained()
    return SourceError(
        f"timm {timm.__version__} has no model {name!r}.",
        hint=did_you_mean(
            name, known, "timm:", "See the names: python -c 'import timm; print(timm.list_models())'"
        ),
    )
