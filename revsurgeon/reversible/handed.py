"""x between two blocks: whether the next one is given it, and whether anybody still holds it.

What ends a forward between two blocks (a Ctrl-C, a hook that raises, code that has seen enough) is not seen
by a chain. But then the network drops x, which is seen here: a half run is not kept until the next one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch


class HandedOut:
    """What a block returned for the next one.

    Args:
        x: the object that the network gets.
        dropped: called once nobody holds x, nor an alias of it that came later, as after ``x.detach()``; None
            keeps x.

    Attributes:
        x: the same memory, to compare with; x itself where an alias would not do.
        had_graph: whether x had a graph.
    """

    def __init__(self, x: torch.Tensor, dropped: Callable[[HandedOut], None] | None) -> None:
        self.x = x
        self.had_graph = x.grad_fn is not None
        self.reference: Callable[[], torch.Tensor | None] = weakref.ref(x)
        self._version = None if x.is_inference() else x._version
        if dropped is None or not can_have_alias(x):
            return
        self.x = x.detach()
        # From here on x goes or aliases come; what shared its memory only for a moment must be gone by now.
        holders = _holders(self.x)
        this = weakref.ref(self)

        def died(_: object) -> None:
            handed = this()
            if handed is not None and _holders(handed.x) <= holders:
                dropped(handed)

        self.reference = weakref.ref(x, died)

    def is_same(self, x: torch.Tensor) -> bool:
        """Whether a tensor is x, the object itself or a full alias of it, unchanged."""
        return self.is_object(x) and (
            self._version is None or x.is_inference() or x._version == self._version
        )

    def is_object(self, x: torch.Tensor) -> bool:
        """Whether a tensor is x, the object itself or a full alias of it, changed or not."""
        return x is self.reference() or is_alias(x, self.x)


def is_alias(x: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same memory in the same order."""
    same = x.data_ptr() == other.data_ptr() and x.shape == other.shape and x.stride() == other.stride()
    return same and x.numel() > 0


def can_have_alias(x: torch.Tensor) -> bool:
    """Whether an alias of x can be taken without anybody noticing."""
    return (
        type(x) is torch.Tensor
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._len_torch_dispatch_stack()
        and not torch.jit.is_tracing()
    )


def _holders(x: torch.Tensor) -> int:
    """How many tensors share the memory of x; one whose reference is just dying is counted."""
    count: int = torch._C._storage_Use_Count(x.untyped_storage()._cdata)
    return count
