"""Several threads: networks of their own, one network, one graph; and nn.DataParallel."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.composition.agreement import (
    Gradients,
    assert_agree,
    assert_same,
    both_arithmetics,
    float_bound,
    gradients_of,
    loss_of,
    stack,
)


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(*tasks: Callable[[], Any]) -> list[Any]:
    """The results of tasks that ran in threads of their own at the same time."""
    results: list[Any] = [None] * len(tasks)
    ready = threading.Barrier(len(tasks))

    def run(number: int) -> None:
        ready.wait()
        results[number] = tasks[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def gradients(network: nn.Module, loss: torch.Tensor, retain: bool = False) -> Gradients:
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=retain), strict=True))


@both_arithmetics
@pytest.mark.parametrize("networks", [1, 2], ids=["one network", "two networks"])
def test_forward_and_backward_in_two_threads(arithmetic: str, networks: int) -> None:
    found = [stack(arithmetic, depth=8, dropout=0.0) for _ in range(networks)]
    bound = 0 if arithmetic == "exact" else float_bound(found[0][0])
    factors = (1.0, 2.0)
    parts = [(*found[i % networks], factor) for i, factor in enumerate(factors)]
    expected = [
        gradients_of(
            network, lambda n=network, x=factor * inputs[0]: loss_of(n, (x,)).backward(), stored=True
        )
        for network, inputs, factor in parts
    ]
    for _ in range(5):
        results = at_once(
            *(
                lambda n=network, x=factor * inputs[0]: gradients(n, loss_of(n, (x,)))
                for network, inputs, factor in parts
            )
        )
        for result, wanted in zip(results, expected, strict=True):
            assert_same(result, wanted, bound)


@both_arithmetics
def test_two_threads_go_backward_through_one_graph(arithmetic: str) -> None:
    network, inputs = stack(arithmetic, depth=12)
    bound = 0 if arithmetic == "exact" else float_bound(network)
    expected = gradients_of(network, lambda: loss_of(network, inputs).backward(), stored=True)
    for _ in range(5):
        torch.manual_seed(0)
        loss = loss_of(network, inputs)
        results = at_once(*(lambda: gradients(network, loss, retain=True) for _ in range(3)))  # noqa: B023
        for result in results:
            assert_same(result, expected, bound)


@both_arithmetics
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_backward_in_another_thread_than_forward(arithmetic: str, autocast: bool) -> None:
    network, inputs = stack(arithmetic)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loss_of(network, inputs)
        at_once(loss.backward)

    eps = torch.finfo(torch.bfloat16).eps / 100 if autocast else torch.finfo(torch.float32).eps
    assert_agree(network, run, arithmetic, eps=eps)


@pytest.mark.xfail(
    strict=True, reason="a replica's blocks run with the weights of the network that it was made from"
)
def test_a_replica_of_data_parallel_runs_with_its_own_weights() -> None:
    network, inputs = stack("float", training=False)
    replica = network._replicate_for_data_parallel()
    block = network.blocks[0]._replicate_for_data_parallel()
    block.linear = block._modules["linear"] = nn.Linear(8, 8)
    replica.blocks = replica._modules["blocks"] = nn.ModuleList([block, *network.blocks[1:]])
    with torch.no_grad():
        assert not torch.equal(replica(*inputs), network(*inputs))
