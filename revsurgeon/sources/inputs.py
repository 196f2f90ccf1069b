"""Example inputs of a network: their shapes, dtypes and what their values mean."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from revsurgeon.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import torch

InputKind = Literal["normal", "tokens", "ones"]

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_SHORT = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}
_FORM = (
    "Write NAME=SHAPE[:DTYPE], as in pixel_values=1x16x3x224x224 or ids=1x128:int64; the batch comes first."
)
_LARGEST = 2**40  # elements; far beyond any memory, and small enough for every index computation
_LARGEST_RECORDED = 2**28  # elements of an input that a manifest may ask for: 1 GiB in float32
_MOST_TOKENS = 2**24


@dataclass(frozen=True)
class Input:
    """One input tensor.

    Attributes:
        shape: with the batch as its first dimension.
        dtype: a name such as `float32`.
        kind: `normal` draws from N(0, 1), `tokens` indices below `high`; `ones` is a mask that hides nothing.
        high: for `tokens`, the number of different indices.
        avoid: for `tokens`, indices with a meaning of their own (padding, image placeholders).
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: InputKind = "normal"
    high: int = 2
    avoid: tuple[int, ...] = ()

    def is_sound(self) -> bool:
        """Whether every field is of its type and the tensor can be made; a record comes from a file."""
        return (
            bool(self.shape)
            and all(type(size) is int and size > 0 for size in self.shape)
            and math.prod(self.shape) <= _LARGEST_RECORDED
            and self.dtype in _DTYPES
            and self.kind in get_args(InputKind)
            and type(self.high) is int
            and 1 <= self.high <= _MOST_TOKENS
            and all(type(index) is int and 0 <= index < _MOST_TOKENS for index in self.avoid)
        )

    def example(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """Return a tensor (batch_size, *shape[1:]) on the CPU, drawn from `generator`."""
        import torch

        shape, dtype = (batch_size, *self.shape[1:]), getattr(torch, self.dtype)
        if self.kind == "ones":
            return torch.ones(shape, dtype=dtype)
        if self.kind == "normal":
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
        allowed = torch.arange(self.high)
        allowed = allowed[~torch.isin(allowed, torch.tensor(self.avoid, dtype=torch.int64))]
        allowed = allowed if len(allowed) else torch.tensor([0])
        return allowed[torch.randint(len(allowed), shape, generator=generator)].to(dtype)


@dataclass(frozen=True)
class InputSpec:
    """The example inputs of a network, in the order in which its forward takes them.

    Attributes:
        entries: by parameter name, or by position as `0`, `1`, ... when inputs are passed by position.
        parameters: names that the network's forward accepts, in order; empty where any name may do.
    """

    entries: Mapping[str, Input] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()

    def example(
        self, batch_size: int = 2, seed: int = 0, device: str = "cpu"
    ) -> tuple[torch.Tensor, ...] | dict[str, torch.Tensor]:
        """Return example tensors: a tuple for positional inputs, else a dict of keyword arguments.

        The same arguments give the same values on every device; the global random state is left alone.
        """
        import torch

        if device == "meta":
            generator = None
            tensors = {
                name: torch.empty(
                    batch_size, *entry.shape[1:], dtype=getattr(torch, entry.dtype), device="meta"
                )
                for name, entry in self.entries.items()
            }
        else:
            generator = torch.Generator().manual_seed(seed)
            tensors = {
                name: entry.example(batch_size, generator).to(device) for name, entry in self.entries.items()
            }
        return tuple(tensors.values()) if self.positional else tensors

    @property
    def positional(self) -> bool:
        """Whether the inputs are passed by position."""
        return all(name.isdigit() for name in self.entries)

    def with_float_dtype(self, dtype: str) -> InputSpec:
        """Return the same inputs with every floating one in `dtype`, as a network of that dtype needs."""
        entries = {
            name: replace(entry, dtype=dtype) if "float" in entry.dtype else entry
            for name, entry in self.entries.items()
        }
        return replace(self, entries=entries)

    def override(self, options: Iterable[str]) -> InputSpec:
        """Return these inputs with some replaced or added, as `--input NAME=SHAPE[:DTYPE]` asks.

        Args:
            options: each as `pixel_values=1x16x3x224x224` or `0=2,3,32,32:float32`. NAME is a parameter of
                the network's forward or a position; the first dimension is the batch.

        Raises:
            UsageError: a text of another form, or a name that the network's forward does not take.
        """
        entries = dict(self.entries)
        for option in options:
            name, shape, dtype = _parse_option(option)
            key = self._key_of(name, entries)
            entries[key] = _replaced(entries.get(key), shape, dtype)
        return replace(self, entries=self._in_order(entries))

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON types."""
        entries = {
            name: {"shape": list(entry.shape), "dtype": entry.dtype, "kind": entry.kind}
            | ({"high": entry.high, "avoid": list(entry.avoid)} if entry.kind == "tokens" else {})
            for name, entry in self.entries.items()
        }
        return {"entries": entries, "parameters": list(self.parameters)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> InputSpec:
        """Return what `to_dict` wrote.

        Raises:
            ArtifactError: a record of another form, or of inputs that no memory would hold.
        """
        try:
            entries = {
                name: Input(
                    **{**entry, "shape": tuple(entry["shape"]), "avoid": tuple(entry.get("avoid", ()))}
                )
                for name, entry in record["entries"].items()
            }
            parameters = tuple(record["parameters"])
        except (TypeError, KeyError, AttributeError, ValueError):
            raise _bad_record(str(record)) from None
        if not all(isinstance(name, str) for name in parameters):
            raise _bad_record(f"parameters: {parameters}")
        for name, entry in entries.items():
            if not entry.is_sound():
                raise _bad_record(f"{name}: {entry}")
        return cls(entries, parameters)

    @classmethod
    def of_examples(cls, examples: Any, parameters: tuple[str, ...] = ()) -> InputSpec:
        """Return the inputs that look like `examples`: a tensor, a tuple of tensors or a dict of them.

        Raises:
            UsageError: something in `examples` is not a tensor with a batch dimension.
        """
        import torch

        if isinstance(examples, torch.Tensor):
            examples = (examples,)
        named = examples if isinstance(examples, Mapping) else {str(i): x for i, x in enumerate(examples)}
        for name, tensor in named.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
                raise UsageError(
                    f"example input {name!r} is {_described(tensor)}, not a tensor with a batch dimension.",
                    hint="Give example inputs as a tensor, a tuple of tensors or a dict of tensors.",
                )
        return cls({name: _like(tensor) for name, tensor in named.items()}, parameters)

    def _key_of(self, name: str, entries: Mapping[str, Input]) -> str:
        """Return the key in `entries` for `name`: itself, a position, or a parameter's position."""
        if name in entries or not (self.entries or self.parameters):
            return name
        if name.isdigit():
            if self.entries and not self.positional and int(name) < len(self.parameters):
                return self.parameters[int(name)]
            if int(name) <= len(entries):
                return name
        elif name in self.parameters:
            index = self.parameters.index(name)
            return str(index) if self.positional and self.entries and index <= len(entries) else name
        known = ", ".join(self.parameters or self.entries)
        raise UsageError(f"the network takes no input {name!r}.", where=f"its inputs: {known}", hint=_FORM)

    def _in_order(self, entries: dict[str, Input]) -> dict[str, Input]:
        """Return entries that are either all positional and in order, or all by name."""
        if all(name.isdigit() for name in entries):
            return dict(sorted(entries.items(), key=lambda item: int(item[0])))
        return {
            self.parameters[int(name)] if name.isdigit() else name: entry for name, entry in entries.items()
        }


def _parse_option(option: str) -> tuple[str, tuple[int, ...], str | None]:
    name, equals, rest = option.partition("=")
    shape_text, colon, dtype = rest.partition(":")
    sizes = re.split(r"[x,]", shape_text.strip())
    name = name.strip()
    if not equals or not (name.isidentifier() or name.isdigit()):
        raise UsageError(f"{option!r} does not say which input it is for.", hint=_FORM)
    if not all(re.fullmatch(r"[1-9][0-9]{0,11}", size) for size in sizes):
        raise UsageError(
            f"{shape_text!r} is not a shape: whole numbers above 0, joined by x.", where=option, hint=_FORM
        )
    shape = tuple(int(size) for size in sizes)
    total = 1
    for size in shape:
        total *= size
    if total > _LARGEST:
        raise UsageError(f"an input of {total} elements fits in no memory.", where=option, hint=_FORM)
    dtype = _SHORT.get(dtype.strip(), dtype.strip())
    if colon and dtype not in _DTYPES:
        raise UsageError(
            f"{dtype!r} is not a dtype for an input.", where=option, hint="Known: " + ", ".join(_DTYPES)
        )
    return name, shape, dtype if colon else None


def _replaced(before: Input | None, shape: tuple[int, ...], dtype: str | None) -> Input:
    """Return an input of this shape that keeps the meaning of the one before, unless the dtype changes it."""
    if before is not None and (dtype is None or ("float" in dtype) == ("float" in before.dtype)):
        return replace(before, shape=shape, dtype=dtype or before.dtype)
    return Input(shape, dtype or "float32", _kind_of(dtype or "float32"))


def _kind_of(dtype: str) -> InputKind:
    if "float" in dtype:
        return "normal"
    return "ones" if dtype == "bool" else "tokens"


def _like(tensor: torch.Tensor) -> Input:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise UsageError(f"an example input has the dtype {dtype}.", hint="Known: " + ", ".join(_DTYPES))
    kind = _kind_of(dtype)
    high = int(tensor.max()) + 1 if kind == "tokens" and tensor.numel() and not tensor.is_meta else 2
    return Input(tuple(tensor.shape), dtype, kind, high=max(high, 1))


def _bad_record(where: str) -> ArtifactError:
    return ArtifactError(
        "the manifest does not say what its network takes.",
        where=f"inputs: {where[:200]}",
        hint="Give example inputs: --input NAME=SHAPE[:DTYPE]; or convert the source again.",
    )


def _described(value: object) -> str:
    return "a tensor without dimensions" if hasattr(value, "dim") else f"a {type(value).__name__}"
