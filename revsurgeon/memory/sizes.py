"""Sizes that a user asks for: of memory, of batches, clips and images, and the network that takes them."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from typing import Any

from revsurgeon.errors import UsageError
from revsurgeon.sources.inputs import Input, InputSpec

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}

VARIES = ("batch", "frames", "image-size")


def parse_bytes(text: str | int) -> int:
    """A size of memory: "24GiB" (binary), "24GB" (decimal), or a number of bytes.

    Raises:
        UsageError: another form, or zero.

    >>> parse_bytes("24GiB"), parse_bytes("1.5 GB")
    (25769803776, 1500000000)
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or not float(found[1]):
        raise UsageError(f"{str(text)!r} is not a size of memory.", hint="Write it as 24GiB, 80GB or 512MiB.")
    return int(float(found[1]) * unit)


@dataclass(frozen=True)
class Sizes:
    """What is asked for; None leaves what the network's inputs have.

    Attributes:
        batch: samples of one forward.
        frames: of a clip.
        image_size: height and width of an image.
        depth: number of blocks, for a network that is built with it.
    """

    batch: int | None = None
    frames: int | None = None
    image_size: int | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "frames", "image_size", "depth"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name.replace('_', ' ')} = {value}: it has to be a number from 1 up.")

    def at(self, vary: str, value: int) -> Sizes:
        """The same with another batch, number of frames, image size or depth."""
        return replace(self, **{vary.replace("-", "_"): value})

    @property
    def of_network(self) -> bool:
        """Whether the network itself may have to be another one."""
        return self.frames is not None or self.image_size is not None or self.depth is not None


def resized(spec: InputSpec, sizes: Sizes) -> InputSpec:
    """Inputs with another number of frames or another height and width. The batch is given to `example`.

    Raises:
        UsageError: none of the inputs has that.
    """
    entries = dict(spec.entries)
    for name, entry in spec.entries.items():
        entries[name] = _resized(entry, sizes)
    if entries == dict(spec.entries):
        for what, value, rank in (("frames", sizes.frames, 5), ("an image size", sizes.image_size, 4)):
            if value is not None and not any(len(e.shape) >= rank for e in entries.values()):
                shapes = ", ".join(f"{n}: {'x'.join(map(str, e.shape))}" for n, e in entries.items())
                raise UsageError(f"the network has no input with {what}.", where=shapes)
    return replace(spec, entries=entries)


def _resized(entry: Input, sizes: Sizes) -> Input:
    shape = list(entry.shape)
    if "float" not in entry.dtype or len(shape) not in (4, 5):
        return entry
    if sizes.image_size is not None:
        shape[-2:] = [sizes.image_size] * 2
    if sizes.frames is not None and len(shape) == 5:
        shape[frames_dimension(entry)] = sizes.frames
    return replace(entry, shape=tuple(shape))


def frames_dimension(entry: Input) -> int:
    """Which dimension of a clip (B, C, T, H, W) or (B, T, C, H, W) is time: the other has few channels."""
    return 2 if entry.shape[1] in (1, 2, 3, 4) and entry.shape[1] <= entry.shape[2] else 1


def check_vary(vary: str) -> None:
    """Refuse what cannot be varied.

    Raises:
        UsageError: it is not one of `VARIES`.
    """
    if vary not in VARIES:
        raise UsageError(f"{vary!r} cannot be varied.", hint="Known: " + ", ".join(VARIES))


def present(spec: InputSpec, vary: str) -> int:
    """What the inputs have now of what is varied.

    Raises:
        UsageError: they have nothing of the kind.
    """
    check_vary(vary)
    if vary == "batch":
        return next(iter(spec.entries.values())).shape[0]
    for entry in spec.entries.values():
        if "float" in entry.dtype and len(entry.shape) == 5 and vary == "frames":
            return entry.shape[frames_dimension(entry)]
        if "float" in entry.dtype and len(entry.shape) in (4, 5) and vary == "image-size":
            return entry.shape[-1]
    raise UsageError(f"the network has no input with {vary.replace('image-size', 'an image size')}.")


def rebuilt(build: Any, sizes: Sizes) -> Any:
    """The record of a network built for other sizes; the same where its library has no such setting."""
    build = copy.deepcopy(build)
    arguments = build["arguments"]
    if build["library"] == "timm":
        settings: Any = arguments.setdefault("model_args", {})
        wanted = {"img_size": sizes.image_size, "depth": sizes.depth}
    elif build["library"] == "torchvision":
        settings, wanted = arguments, {"image_size": sizes.image_size}
    elif build["library"] == "transformers":
        settings = arguments.setdefault("config", {})
        # A config has what it does not say by default, and what it does not know changes nothing.
        wanted = {
            "image_size": sizes.image_size,
            "num_frames": sizes.frames,
            "num_hidden_layers": sizes.depth,
        }
    else:
        return build
    settings |= {name: value for name, value in wanted.items() if value is not None}
    return build
