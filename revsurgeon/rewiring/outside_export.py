"""Follow a block's code while torch.export follows the network's: outside of that trace, on stand-ins.

A block is cut into segments when a kind of call first happens, and that may be under torch.export (the models
of transformers pass another mask there than otherwise). What is cut is the block's own code, which
torch.export must not see twice; and its tensors are torch.export's, with sizes that are still open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import _len_torch_function_stack, _pop_mode_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes


@contextlib.contextmanager
def outside_export() -> Iterator[None]:
    """Suspend what torch.export has put around the code inside this context."""
    exporting = torch.compiler._is_exporting_flag
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disable_current_modes())
        for _ in range(_len_torch_function_stack()):
            stack.enter_context(_pop_mode_temporarily())
        torch.compiler._is_exporting_flag = False
        try:
            yield
        finally:
            torch.compiler._is_exporting_flag = exporting


def stand_ins(arguments: Any) -> Any:
    """The same arguments with tensors of zeros in place of torch.export's; one for each, wherever it occurs.

    Sizes that are open are those of the example. To be called outside of the trace.
    """
    made: dict[int, torch.Tensor] = {}

    def like(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            sizes = [size.node.hint if isinstance(size, torch.SymInt) else size for size in tensor.shape]
            made[id(tensor)] = torch.zeros(sizes, dtype=tensor.dtype, device=tensor.device)
        return made[id(tensor)]

    return pytree.tree_map_only(torch.Tensor, like, arguments)
