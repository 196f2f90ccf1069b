"""Proxies that know the value that they stand for on the example inputs."""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from revsurgeon.anatomy.trace import BlockTracer

CONSTANT_TYPES = (
    *(bool, int, float, complex, str, bytes, type(None), enum.Enum),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size),
)
"""Types of arguments that a graph may hold as they are."""

# Tensor attributes that a graph need not follow: they are part of the key under which it is kept.
_FIXED_METADATA = frozenset(
    {"dtype", "device", "ndim", "layout", "is_cuda", "is_cpu", "is_meta", "requires_grad", "is_sparse"}
    | {"is_nested", "is_quantized", "is_mkldnn", "itemsize", "names", "is_leaf", "is_xpu", "is_mps"}
)
_FIXED_METHODS = frozenset(
    {"dim", "ndimension", "is_floating_point", "is_complex", "element_size", "get_device"}
)


class TraceError(Exception):
    """The block's Python code cannot be followed on example values; the message says why."""


class ValueProxy(fx.Proxy):
    """A proxy that knows its example value."""

    tracer: BlockTracer

    @property
    def value(self) -> Any:
        """The value on the example inputs."""
        return self.node.meta["value"]

    def __getattr__(self, name: str) -> Any:
        value = self.value
        if self.node.meta.get("opaque"):
            raise TraceError(f"its own code looks into an argument of type {type(value).__name__}")
        if isinstance(value, torch.Tensor):
            if name in _FIXED_METADATA:
                return getattr(value, name)
            if name in _FIXED_METHODS:
                return getattr(value, name)
        if not hasattr(value, name):
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        if callable(getattr(value, name)):
            return lambda *args, **kwargs: self.tracer.create_proxy(
                "call_method", name, (self, *args), kwargs
            )
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    # Tuples are structure: taken apart, so that ``(x,) + rest[1:]`` is a tuple of values, not an operation.

    def __getitem__(self, key: Any) -> Any:
        if is_sequence(self) and isinstance(key, slice):
            return type(self.value)(self[i] for i in range(len(self.value))[key])
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __add__(self, other: Any) -> Any:
        if is_sequence(self):
            return type(self.value)(self) + (type(self.value)(other) if is_sequence(other) else other)
        return self.tracer.create_proxy("call_function", operator.add, (self, other), {})

    def __radd__(self, other: Any) -> Any:
        if is_sequence(self):
            return other + type(self.value)(self)
        return self.tracer.create_proxy("call_function", operator.add, (other, self), {})

    def _decide(self) -> Any:
        """The example value, for Python code that decides by it; only sizes may be decided by."""
        if isinstance(self.value, torch.Tensor):
            raise TraceError(f"Python code depends on the data in {self.node.name!r}")
        if self.node.meta.get("opaque"):
            raise TraceError(f"its own code decides by an argument of type {type(self.value).__name__}")
        self.tracer.specialised = True
        return self.value

    def __bool__(self) -> bool:
        return bool(self._decide())

    def __int__(self) -> int:
        return int(self._decide())

    def __index__(self) -> int:
        return operator.index(self._decide())

    def __float__(self) -> float:
        return float(self._decide())

    def __len__(self) -> int:
        if isinstance(self.value, torch.Tensor):
            return int(self.shape[0])
        return len(self.value)  # the length of a tuple or a shape is structure, not data

    def __iter__(self) -> Iterator[Any]:
        return iter([operator.getitem(self, i) for i in range(len(self))])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __contains__(self, item: object) -> bool:
        return item in self._decide()

    def __hash__(self) -> int:
        # A size finds its entry in a cache that the code keeps, as the number would.
        return hash(self._decide()) if isinstance(self.value, (int, float)) else id(self)


def is_sequence(value: Any) -> bool:
    """Whether a value is a proxy for a tuple or a list."""
    return type(value) is ValueProxy and type(value.value) in (tuple, list)


def expanded(output: Any) -> Any:
    """The output with every tuple or list that is a proxy's value taken apart, so that its leaves line up."""
    if is_sequence(output):
        return type(output.value)(expanded(output[i]) for i in range(len(output)))
    if type(output) in (tuple, list):
        return type(output)(expanded(part) for part in output)
    return output
