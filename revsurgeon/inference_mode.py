"""Work that is done outside of torch.inference_mode, wherever it is asked for.

A tensor made in that mode can never be trained. And it does not count its changes, so that nobody can see
whether something wrote to it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils import _pytree as pytree

_P = ParamSpec("_P")
_R = TypeVar("_R")


def outside_inference_mode(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Leave inference mode for a call, without gradients, and hand it copies of tensors of that mode.

    A tensor that is handed over more than once stays one tensor.
    """

    @functools.wraps(function)
    def outside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        copies: dict[int, torch.Tensor] = {}

        def normal(tensor: torch.Tensor) -> torch.Tensor:
            return copies.setdefault(id(tensor), tensor.clone()) if tensor.is_inference() else tensor

        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            handed: tuple[Any, Any] = pytree.tree_map_only(torch.Tensor, normal, (args, kwargs))
            return function(*handed[0], **handed[1])

    return outside
