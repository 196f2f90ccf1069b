"""A failure in one of the two processes is told, leaves nobody waiting, and does not reach the next test."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from tests.distributed.processes import TwoProcesses


def together(rank: int) -> float:
    total = torch.tensor(float(rank + 1))
    dist.all_reduce(total)
    return float(total)


def raises_while_the_other_waits(rank: int) -> None:
    if rank == 0:
        raise ValueError("on purpose")
    dist.barrier()


def dies_while_the_other_waits(rank: int) -> None:
    if rank == 1:
        os._exit(7)
    dist.barrier()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises_while_the_other_waits, "on purpose"),
        (dies_while_the_other_waits, "rank 1 died"),
    ],
)
def test_a_failure_of_one_is_told_and_the_next_call_works(
    two_processes: TwoProcesses, function: Callable[[int], None], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        two_processes(function)
    assert two_processes(together) == [3.0, 3.0]
