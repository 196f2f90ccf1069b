"""Networks of torchvision by name: images, videos and dense prediction."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import SourceError
from revsurgeon.sources.inputs import Input, InputSpec
from revsurgeon.sources.source import Build, Loaded
from revsurgeon.sources.suggestions import did_you_mean
from revsurgeon.sources.torch_hub import download_errors, downloaded, tensors_only

if TYPE_CHECKING:
    from torch import nn

_FRAMES = 16  # what torchvision's video weights were trained with, or more than their minimum
_WITHOUT_PLAIN_INPUT = ("detection", "optical_flow", "quantization")


def build_of_name(name: str, num_classes: int | None = None, pretrained: bool = False) -> Build:
    """Return the build of a model that torchvision knows by name.

    Args:
        pretrained: build it as its pretrained weights need it. They set arguments of their own (the number
            of classes, auxiliary heads, a transformation of the input), which only the builder knows.

    Raises:
        SourceError: no such model (lists close names), or one whose input is not one tensor.
    """
    import torchvision

    known = torchvision.models.list_models()
    if name.lower() not in known:
        raise SourceError(
            f"torchvision {torchvision.__version__} has no model {name!r}.",
            hint=did_you_mean(name, known, "torchvision:", "See the names: torchvision.models.list_models()"),
        )
    family = torchvision.models.get_model_builder(name).__module__.split(".")
    if any(part in family for part in _WITHOUT_PLAIN_INPUT):
        raise SourceError(
            f"torchvision's {name!r} takes something else than one batch of images or videos.",
            hint="Wrap the part to convert in a function and name it as python:module:function.",
        )
    arguments: dict[str, Any] = {}
    if pretrained:
        arguments["weights"] = _default_weights(name.lower(), num_classes).name
    elif num_classes is not None:
        arguments["num_classes"] = num_classes
    return {"library": "torchvision", "entry": name.lower(), "arguments": arguments}


def construct(build: Build) -> nn.Module:
    """Return the network of a build, randomly initialised as torchvision does it; nothing is downloaded."""
    import torchvision

    from revsurgeon.sources.construction import without_loading

    builder = torchvision.models.get_model_builder(build["entry"])
    arguments = dict(build["arguments"])
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=FutureWarning, module="torchvision"
        )  # how it will initialise
        if "weights" in arguments:
            with _no_download():
                return without_loading(lambda: builder(weights=_weights(build)))
        if "weights_backbone" in inspect.signature(builder).parameters:
            arguments["weights_backbone"] = None
        return builder(weights=None, **arguments)


def inputs_of(build: Build) -> InputSpec:
    """Return the crop that the default weights were trained on, from torchvision's own record of them."""
    weights = _find_default_weights(build["entry"])
    keywords = getattr(weights.transforms, "keywords", {}) if weights else {}
    size = keywords.get("crop_size") or keywords.get("resize_size") or 224
    sizes = (size,) if isinstance(size, int) else tuple(size)
    height, width = sizes[0], sizes[-1]
    if _is_video(build["entry"]):
        frames = max(_FRAMES, weights.meta.get("min_temporal_size", 1) if weights else 1)
        return InputSpec({"0": Input((1, 3, frames, height, width))}, parameters=("x",))
    return InputSpec({"0": Input((1, 3, height, width))}, parameters=("x",))


@dataclass(frozen=True)
class TorchvisionLoader:
    """Loads a torchvision network, with the weights that its build names or else with random ones."""

    build: Build

    def architecture(self) -> nn.Module:
        """Return the network on the meta device."""
        from revsurgeon.sources.construction import on_meta

        return on_meta(lambda: construct(self.build))

    def load(self) -> Loaded:
        """Return the network with its weights, downloaded by torchvision unless its cache has them.

        Raises:
            HubError: the weights cannot be downloaded.
        """
        import torchvision

        from revsurgeon.sources.construction import seeded, with_weights

        if "weights" not in self.build["arguments"]:
            with seeded():
                return Loaded(construct(self.build))
        weights = _weights(self.build)
        builder = torchvision.models.get_model_builder(self.build["entry"])
        with download_errors(weights.url), tensors_only():
            module, _ = with_weights(lambda: builder(weights=weights), lambda: construct(self.build))
        return Loaded(module, downloaded(weights.url), dtype="float32")


def _weights(build: Build) -> Any:
    """Return the member of torchvision's enumeration of weights that a build names.

    Raises:
        SourceError: this version of torchvision does not have it.
    """
    import torchvision

    name = build["arguments"]["weights"]
    try:
        return torchvision.models.get_model_weights(build["entry"])[name]
    except KeyError:
        raise SourceError(
            f"torchvision {torchvision.__version__} has no weights {name!r} for {build['entry']!r}.",
            hint="Install the version of torchvision that the manifest names.",
        ) from None


def _default_weights(name: str, num_classes: int | None) -> Any:
    """Return the default pretrained weights of a model.

    Raises:
        SourceError: there are none, or they have another number of classes.
    """
    weights = _find_default_weights(name)
    if weights is None:
        raise SourceError(
            f"torchvision has no pretrained weights for {name!r}.", hint="Add --random-weights."
        )
    available = len(weights.meta.get("categories", ()))
    if num_classes is not None and available and num_classes != available:
        raise SourceError(
            f"torchvision's weights for {name!r} have {available} classes, not {num_classes}.",
            hint="Convert them as they are and replace the head afterwards, or add --random-weights.",
        )
    return weights


def _find_default_weights(name: str) -> Any:
    import torchvision

    try:
        return torchvision.models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError):  # no enumeration of weights, or an empty one
        return None


def _is_video(name: str) -> bool:
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models.video)


@contextmanager
def _no_download() -> Iterator[None]:
    """Have torchvision's builders get an empty state dict."""
    from torchvision.models import WeightsEnum

    original = WeightsEnum.get_state_dict
    setattr(WeightsEnum, "get_state_dict", lambda *_, **__: {})  # noqa: B010  # mypy refuses assignment
    try:
        yield
    finally:
        setattr(WeightsEnum, "get_state_dict", original)  # noqa: B010
