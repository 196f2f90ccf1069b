"""Make the network of an entry, with random weights that hide nothing, and the smallest inputs it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.zoo.catalogue import Entry

BATCHES = (3, 2)
"""The two batch sizes; the first one is also trained on."""

_SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 384, 448, 512)
_CLIPS = ((8, 64), (16, 64), (16, 112), (16, 224))
_MOST_PARAMETERS = 200_000_000


class NotTriedError(Exception):
    """The network itself does not run here; the message says why."""


@dataclass
class Subject:
    """A network and what it is called with.

    Attributes:
        network: with random weights.
        batches: of two sizes, each a tuple of positional or a dict of keyword arguments.
        training: what it takes in training mode, if that is something else.
        size: of the inputs, in words.
    """

    network: nn.Module
    batches: list[Any]
    training: Any
    size: str


def make(entry: Entry) -> Subject:
    """The network of an entry.

    Raises:
        NotTriedError: it cannot be made, or does not run.
    """
    torch.manual_seed(0)
    subject = {"image": _image, "clip": _clip, "detection": _detection, "config": _config}[entry.kind](entry)
    enliven(subject.network)
    return subject


def enliven(network: nn.Module) -> None:
    """Draw parameters that are constant (zero above all), so that no branch is silent."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if (
                parameter.is_floating_point()
                and parameter.numel()
                and float(parameter.std(correction=0)) == 0
            ):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                one_sided = bool((parameter == 1).all())
                parameter.add_(
                    (0.1 * noise).to(parameter.dtype) if one_sided else (0.05 * noise).to(parameter.dtype)
                )


def _image(entry: Entry) -> Subject:
    """An image network, and the smallest image on which it runs in both modes."""
    network: nn.Module | None = None
    last: Exception | None = None
    for size in (*_SIZES, None):
        try:
            if entry.library == "timm":
                network = _timm(entry, size)
            network = network or _torchvision(entry)
            if size is None:  # the size that it was made for
                size = getattr(network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
        except (TypeError, ValueError, AssertionError, RuntimeError, IndexError, ZeroDivisionError) as error:
            last = error
            continue
        images = [torch.randn(b, 3, size, size) for b in BATCHES]
        if (failure := _failure(network, [(i,) for i in images])) is None:
            return Subject(network, [(i,) for i in images], (images[0],), f"{size} x {size}")
        last = failure
    raise NotTriedError(repr(last)[:300])


def _timm(entry: Entry, size: int | None) -> nn.Module:
    import timm

    cfg = timm.get_pretrained_cfg(entry.name)
    fixed = {"img_size": size} if size is not None and cfg is not None and cfg.fixed_input_size else {}
    rates = {"drop_rate": 0.1, "drop_path_rate": 0.1}
    for options in ({**fixed, **rates}, {**fixed, "drop_rate": 0.1}, fixed, rates, {}):
        try:
            return timm.create_model(entry.name, **entry.settings, **options)
        except TypeError as error:
            last = error
    raise last


def _torchvision(entry: Entry, **more: Any) -> nn.Module:
    import torchvision

    backbone = {"weights_backbone": None} if entry.family in ("segmentation", "detection") else {}
    settings = {**entry.settings, **more}
    sizes = {name: settings.pop(name) for name in ("spatial_size", "temporal_size") if name in settings}
    with _of_clips(sizes) if sizes else contextlib.nullcontext():
        return torchvision.models.get_model(entry.name, weights=None, **backbone, **settings)


@contextlib.contextmanager
def _of_clips(sizes: dict[str, Any]) -> Iterator[None]:
    """Have torchvision make MViT for other clips than those of 16 x 224 x 224 that its makers insist on."""
    from torchvision.models.video import mvit

    make = mvit._mvit
    mvit._mvit = lambda *args, **settings: make(*args, **{**settings, **sizes})
    try:
        yield
    finally:
        mvit._mvit = make


def _clip(entry: Entry) -> Subject:
    network = _torchvision(entry)
    last: Exception | None = None
    for frames, size in _CLIPS:
        clips = [torch.randn(b, 3, frames, size, size) for b in BATCHES]
        if (last := _failure(network, [(c,) for c in clips])) is None:
            return Subject(network, [(c,) for c in clips], (clips[0],), f"{frames} x {size} x {size}")
    raise NotTriedError(repr(last)[:300])


def _detection(entry: Entry) -> Subject:
    """A detector: lists of images, and targets in training mode."""
    settings = entry.settings if "ssd" not in entry.name else {}
    network = _torchvision(Entry(entry.library, entry.name, entry.family, entry.kind, settings))
    batches = [([torch.rand(3, 64, 64) for _ in range(b)],) for b in BATCHES]
    box = torch.tensor([[8.0, 8.0, 48.0, 40.0], [4.0, 20.0, 30.0, 60.0]])
    target = {
        "boxes": box,
        "labels": torch.tensor([1, 1]),
        "masks": torch.ones(2, 64, 64, dtype=torch.uint8),
        "keypoints": torch.cat([box[:, None, :2].expand(2, 17, 2) + 5, torch.ones(2, 17, 1)], dim=2),
    }
    training = (batches[0][0], [{k: v.clone() for k, v in target.items()} for _ in batches[0][0]])
    if (failure := _failure(network, batches, training)) is not None:
        raise NotTriedError(repr(failure)[:300])
    return Subject(network, batches, training, "64 x 64")


def _config(entry: Entry) -> Subject:
    """An architecture of transformers with a configuration made small, as small as it still runs."""
    last: Exception | None = None
    for factor, depth, image in ((8, 3, 64), (8, 4, 64), (8, 4, None), (4, 3, 64), (1, 4, 64), (1, 4, None)):
        try:
            network, batches, size = _from_config(entry, factor, depth, image)
        except Exception as error:  # noqa: BLE001 - a configuration that was not foreseen fails anyhow
            last = error
            continue
        if (failure := _failure(network, batches)) is None:
            return Subject(network, batches, batches[0], size)
        last = failure
    raise NotTriedError(repr(last)[:300])


def _from_config(
    entry: Entry, factor: int, depth: int, image: int | None
) -> tuple[nn.Module, list[Any], str]:
    from benchmarks.zoo.shrink import shrink
    from revsurgeon.sources.transformers_classes import config_class_of
    from revsurgeon.sources.transformers_source import build_of_config, construct, inputs_of

    config = config_class_of(entry.name)(**entry.settings)
    shrink(config, factor, depth, image)
    for name, value in {"use_cache": False}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    build = build_of_config(config.to_dict())
    with torch.device("meta"):
        count = sum(p.numel() for p in construct(build).parameters())
    if count > _MOST_PARAMETERS:
        raise NotTriedError(f"{count / 1e6:.0f} million parameters")
    network = construct(build)
    spec = inputs_of(build)
    if image is not None:  # the size that is assumed where the configuration says none
        entries = {
            n: replace(e, shape=tuple(image if s == 224 else s for s in e.shape))
            for n, e in spec.entries.items()
        }
        spec = replace(spec, entries=entries)
    batches = [spec.example(b, seed=b) for b in BATCHES]
    if not batches[0]:
        raise NotTriedError("no example inputs can be derived")
    if "use_cache" in spec.parameters:
        batches = [{**batch, "use_cache": False} for batch in batches]
    shapes = {n: tuple(e.shape[1:]) for n, e in spec.entries.items()}
    return network, batches, ", ".join(f"{n} {' x '.join(map(str, s))}" for n, s in shapes.items())


def _failure(network: nn.Module, batches: list[Any], training: Any = None) -> Exception | None:
    """What goes wrong when the network itself runs in both modes; None if nothing does."""
    modes: list[tuple[bool, Any]] = [*((False, batch) for batch in batches)]
    modes.append((True, batches[0] if training is None else training))
    try:
        with torch.no_grad():
            for train, batch in modes:
                network.train(train)
                output = call(network, batch)
                if any(bool(t.isnan().any()) for t in tensors(output) if t.is_floating_point()):
                    return NotTriedError("its output is not a number")
    except Exception as error:  # noqa: BLE001 - any network may fail on inputs that are too small
        return error
    finally:
        network.eval()
    return None


def call(network: Callable[..., Any], inputs: Any) -> Any:
    """Call with positional or keyword arguments; lists among them are copied, because some networks write."""
    inputs = pytree.tree_map(lambda leaf: leaf, inputs)
    return network(**inputs) if isinstance(inputs, dict) else network(*inputs)


def tensors(output: Any) -> list[torch.Tensor]:
    """All tensors of an output, in order."""
    return list(_tensors(output))


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    yield from (leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor))
