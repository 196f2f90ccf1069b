"""Parameters without memory that stand in for real ones while a network is constructed.

A stand-in is a zero, expanded to the parameter's shape. It is on the CPU, so that everything a constructor
computes (buffers, sizes found by a forward) is right, and it cannot be written to, so that initialising it
is skipped. The meta device does neither: buffers made "on the device of the weight" end up there as well.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode


class _ThisThread(threading.local):
    active = False


_this_thread = _ThisThread()


def is_stand_in(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements share their memory, as a stand-in's do."""
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


@contextmanager
def stand_ins() -> Iterator[None]:
    """Make every parameter that a module registers in this thread a stand-in, and skip writing to it.

    A parameter that is registered twice (tied weights) stays one; parameters of one element stay real.
    """
    handle = torch_module.register_module_parameter_registration_hook(_stand_in)
    before, _this_thread.active = _this_thread.active, True
    try:
        with _WritesSkipped():
            yield
    finally:
        _this_thread.active = before
        handle.remove()


@contextmanager
def real_parameters() -> Iterator[None]:
    """Within `stand_ins`, let modules register parameters as they are."""
    before, _this_thread.active = _this_thread.active, False
    try:
        yield
    finally:
        _this_thread.active = before


def _stand_in(_: nn.Module, __: str, parameter: Any) -> Any:
    # Lazy and quantized parameters are classes of their own, with other constructors.
    if not _this_thread.active or type(parameter) is not nn.Parameter or is_stand_in(parameter):
        return None
    zero = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
    return nn.Parameter(zero.expand(parameter.shape), requires_grad=parameter.requires_grad)


class _WritesSkipped(TorchFunctionMode):
    """Skips functions that write in place where their target is a stand-in; others run as ever."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        writes = name == "__setitem__" or (name.endswith("_") and not name.startswith("_"))
        if writes and name != "requires_grad_":
            target = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(target, torch.Tensor) and is_stand_in(target):
                return target
        return func(*args, **kwargs)
