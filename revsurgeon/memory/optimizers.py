"""The optimizers whose states are counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch

from revsurgeon.errors import UsageError

OptimizerName = Literal["adamw", "sgd", "adam8bit"]


def check_optimizer(name: str) -> None:
    """Refuse a name that is not known.

    Raises:
        UsageError: it is not.
    """
    if name not in get_args(OptimizerName):
        raise UsageError(
            f"optimizer {name!r} is not known.", hint="Known: " + ", ".join(get_args(OptimizerName))
        )


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter], device: str) -> torch.optim.Optimizer:
    """An optimizer with a learning rate of zero: measuring leaves the weights as they are.

    Args:
        name: "adamw", "sgd" (with momentum) or "adam8bit".
        parameters: that are trained.
        device: "cuda" or "cpu": torch updates all parameters at once on the one (`foreach`), which takes
            memory for temporaries, and one by one on the other.

    Raises:
        UsageError: another name.
    """
    check_optimizer(name)
    found = list(parameters)
    foreach = device == "cuda"
    if name == "adamw":
        return torch.optim.AdamW(found, lr=0.0, foreach=foreach)
    if name == "sgd":
        return torch.optim.SGD(found, lr=0.0, momentum=0.9, foreach=foreach)
    return EightBitAdam(found)


class EightBitAdam(torch.optim.Optimizer):
    """The states of Adam in 8 bits (Dettmers et al., ICLR 2022), to be counted: it updates nothing.

    As in bitsandbytes: two bytes an element, and for every 256 elements two factors of four bytes; tensors of
    fewer than 4096 elements keep their states in 32 bits.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(list(parameters), {})

    def step(self, closure: Any = None) -> Any:
        """Make the states where there are none; the kernel itself takes no other memory."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if state or parameter.grad is None:
                    continue
                small = parameter.numel() < 4096
                dtype = torch.float32 if small else torch.uint8
                for moment in ("first", "second"):
                    state[moment] = torch.zeros(parameter.numel(), dtype=dtype, device=parameter.device)
                    if not small:
                        blocks = -(-parameter.numel() // 256)
                        state[f"{moment}_scale"] = torch.zeros(
                            blocks, dtype=torch.float32, device=parameter.device
                        )


def state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All tensors of an optimizer's state."""
    return [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
