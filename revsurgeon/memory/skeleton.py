"""A network without memory: its tensors are fake, so that any size can be run on any machine.

torch's FakeTensorMode computes shapes, strides and dtypes and no values. What asks for a value gets none: the
runtime of reversible chains compares checksums and random states, and is told that all is well, since nothing
is computed that could differ. A network whose own code asks for values cannot be simulated, and says so.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from revsurgeon.errors import UnsupportedModelError

_RUNTIME = "revsurgeon.reversible."
_OURS = ("revsurgeon.memory.skeleton", "revsurgeon.memory.tracker", "contextlib")


class WithoutValues(TorchDispatchMode):
    """Answers the runtime's questions about values that do not exist, and refuses everybody else's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.equal.default:
            asker = _asker()
            if asker.startswith(_RUNTIME):
                # Equal, unless it is a buffer that was written to: batch norm's counter is among its buffers.
                return not isinstance(args[1], FakeTensor) or args[1]._version == 0
            raise _needs_values(asker)
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            asker = _asker()
            if asker.startswith(_RUNTIME):
                return True if args[0].dtype == torch.bool else 0.0
            if asker.startswith("torch.optim."):
                return 1.0  # the number of steps taken
            raise _needs_values(asker)
        return func(*args, **(kwargs or {}))


def _asker() -> str:
    """The module whose code asks, torch's own left out but for its optimizers."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        of_torch = name == "torch" or name.startswith("torch.")
        if (not of_torch or name.startswith("torch.optim.")) and name not in _OURS:
            return str(name)
        frame = frame.f_back
    return ""


def _needs_values(asker: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "the network decides by the values of tensors, so it cannot be run without memory.",
        where=asker,
        hint="Give inputs with which it does not (leave a mask out), or measure it: revsurgeon bench.",
    )


@contextmanager
def no_memory(fake: FakeTensorMode | None = None) -> Iterator[FakeTensorMode]:
    """Make every tensor that is created inside this context a fake one.

    Args:
        fake: the mode that fake tensors in use belong to; None makes one.
    """
    fake = fake or FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.enter_context(fake)
        stack.enter_context(WithoutValues())
        yield fake


def skeleton(network: nn.Module, device: str = "cpu") -> nn.Module:
    """A copy of a network without its weights: fake ones, if it is called within `no_memory`.

    Args:
        network: with weights or on the meta device; left as it is. Tied parameters stay tied.
        device: of the copy; on "meta" it has no memory anywhere.
    """
    memo: dict[int, Any] = {}
    for module in network.modules():
        for tensor in (
            *module._parameters.values(),
            *module._buffers.values(),
            *(v for v in vars(module).values() if isinstance(v, torch.Tensor)),
        ):
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = empty_like(tensor, device)
    return copy.deepcopy(network, memo)


def without_values(network: nn.Module) -> nn.Module:
    """A copy whose parameters have a shape and a place, but no values and no memory.

    Inputs may have values beside them, for code that looks (`if mask.all()`), as they could not on meta.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        return skeleton(network)


def constants(network: nn.Module) -> list[torch.Tensor]:
    """Tensors that a network holds beside its parameters: buffers, and plain attributes."""
    return [
        tensor
        for module in network.modules()
        for tensor in (*module._buffers.values(), *vars(module).values())
        if isinstance(tensor, torch.Tensor)
    ]


def empty_like(tensor: torch.Tensor, device: str = "cpu") -> torch.Tensor:
    """A tensor or parameter of the same shape, strides and dtype."""
    found = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(found, requires_grad=tensor.requires_grad)
    return found


def fake_inputs(arguments: Any) -> Any:
    """Arguments of a forward with fake tensors in place of theirs."""
    return pytree.tree_map_only(torch.Tensor, empty_like, arguments)
