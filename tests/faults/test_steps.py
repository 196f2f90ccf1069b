"""Training steps that go wrong in every way leave nothing behind, and the step after each is right."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

import revsurgeon as rs
from tests.gradients import assert_identical, step
from tests.models import NETWORKS, residual_stack, seeded, timm_vit

POINTS = [(1 - beta, beta) for beta in (0.1, 0.2, 0.3, 0.5, 0.7)]


@pytest.fixture(autouse=True)
def _others_do_not_count() -> Iterator[None]:
    """What other tests of this process have left, and let go of meanwhile, is not looked at by `alive`."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class FaultError(RuntimeError):
    """What the faults here raise, beside an exhausted memory."""


def rewired(make: Callable[[], Any], arithmetic: str) -> tuple[nn.Module, Any]:
    network, inputs = seeded(make)
    rs.rewire(network, example_inputs=inputs, arithmetic=arithmetic)
    return network.train(), inputs


def loss_of(network: nn.Module, inputs: Any) -> torch.Tensor:
    output = network(**inputs) if isinstance(inputs, dict) else network(*inputs)
    found = output if isinstance(output, torch.Tensor) else next(iter(output.values()))
    return found.float().square().mean()


@contextmanager
def failing(network: nn.Module, error: Exception, *, after: int = 0) -> Iterator[None]:
    """Raise in the forward of a layer in the middle of a chain, from its call number `after` on."""
    block = network.get_submodule(rs.chains(network)[0].name)[1]
    layer = [module for module in block.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error

    handle = layer.register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def whole_step(network: nn.Module, inputs: Any) -> None:
    loss_of(network, inputs).backward()


def forward_alone(network: nn.Module, inputs: Any) -> None:
    loss_of(network, inputs)


def forward_without_gradients(network: nn.Module, inputs: Any) -> None:
    with torch.no_grad():
        loss_of(network, inputs)


def evaluation(network: nn.Module, inputs: Any) -> None:
    network.eval()
    loss_of(network, inputs)
    network.train()


def two_forwards_and_one_backward(network: nn.Module, inputs: Any) -> None:
    first, second = loss_of(network, inputs), loss_of(network, inputs)
    first.backward()
    del second


def backward_that_raises(network: nn.Module, inputs: Any) -> None:
    parameter = list(network.parameters())[len(list(network.parameters())) // 2]

    def fail(gradient: torch.Tensor) -> None:
        raise FaultError("in backward")

    handle = parameter.register_hook(fail)
    try:
        with pytest.raises(FaultError):
            loss_of(network, inputs).backward()
    finally:
        handle.remove()


def out_of_memory_in_forward(network: nn.Module, inputs: Any) -> None:
    with (
        failing(network, torch.OutOfMemoryError("CUDA out of memory.")),
        pytest.raises(torch.OutOfMemoryError),
    ):
        loss_of(network, inputs)


def out_of_memory_in_backward(network: nn.Module, inputs: Any) -> None:
    """In the run of a segment that rebuilds it; the first run of that layer was in the forward pass."""
    with (
        failing(network, torch.OutOfMemoryError("CUDA out of memory."), after=1),
        pytest.raises(torch.OutOfMemoryError),
    ):
        loss_of(network, inputs).backward()


def interrupted(network: nn.Module, inputs: Any) -> None:
    """Ctrl-C in a segment."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = network.get_submodule(rs.chains(network)[0].name)[1].register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            loss_of(network, inputs)
    finally:
        handle.remove()


FAULTS = (
    whole_step,
    forward_alone,
    forward_without_gradients,
    evaluation,
    two_forwards_and_one_backward,
    backward_that_raises,
    out_of_memory_in_forward,
    out_of_memory_in_backward,
    interrupted,
)


def alive() -> tuple[int, int]:
    """How many tensors and nodes of autograd graphs Python knows of that are younger than the test."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]  # not isinstance, which asks some objects themselves
    return (
        sum(issubclass(kind, torch.Tensor) for kind in kinds),
        sum(issubclass(kind, torch.autograd.graph.Node) for kind in kinds),
    )


def run(network: nn.Module, inputs: Any, steps: range) -> None:
    """Steps with every fault in turn, each at other coefficients, and one that is whole."""
    for number in steps:
        rs.set_coefficients(network, *POINTS[number % len(POINTS)])
        network.zero_grad()
        FAULTS[number % len(FAULTS)](network, inputs)
    whole_step(network, inputs)  # until then, torch itself keeps what is left of a backward that raised
    network.zero_grad()


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_nothing_is_left_of_fifty_steps(arithmetic: str) -> None:
    network, inputs = rewired(lambda: residual_stack(depth=4, dropout=0.1), arithmetic)
    run(network, inputs, range(45))  # every fault at every point, once: what is made once is there by now
    before = alive()
    run(network, inputs, range(45, 95))
    assert alive() == before
    assert all(chain._runs == {} for chain in rs.chains(network))


def test_one_kept_graph_would_be_seen() -> None:
    network, inputs = rewired(residual_stack, "exact")
    before = alive()
    kept = loss_of(network, inputs)
    assert alive()[0] > before[0]
    del kept
    assert alive() == before


def raised_by_hook(block: nn.Module, place: str, error: BaseException) -> RemovableHandle:
    """Have a hook of a block itself raise, which a chain does not see."""

    def fail(*_: object) -> None:
        raise error

    return block.register_forward_pre_hook(fail) if place == "before" else block.register_forward_hook(fail)


@pytest.mark.parametrize("mode", ["reversible", "stored", "without gradients"])
@pytest.mark.parametrize("arithmetic", ["float", "exact"])
@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_forward_that_ends_between_two_blocks_leaves_nothing(
    place: str, arithmetic: str, mode: str
) -> None:
    network, inputs = rewired(residual_stack, arithmetic)
    rs.set_coefficients(network, 0.9, 0.1)
    whole_step(network, inputs)
    network.zero_grad()
    before = alive()
    handle = raised_by_hook(network.get_submodule("blocks")[2], place, KeyboardInterrupt())
    stored = rs.stored_activations(network) if mode == "stored" else contextlib.nullcontext()
    with stored, torch.set_grad_enabled(mode != "without gradients"), pytest.raises(KeyboardInterrupt):
        loss_of(network, inputs)
    handle.remove()
    del handle, stored
    assert alive() == before
    assert all(chain._runs == {} for chain in rs.chains(network))


@pytest.mark.parametrize("mode", ["reversible", "stored", "without gradients"])
@pytest.mark.parametrize("alias", [torch.Tensor.detach, lambda x: x.view_as(x)], ids=["detached", "viewed"])
@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_an_alias_of_what_a_block_returned_goes_on_with_its_run(
    arithmetic: str, alias: Callable[[torch.Tensor], torch.Tensor], mode: str
) -> None:
    """The object that the block returned is gone by then."""
    network, inputs = rewired(residual_stack, arithmetic)
    rs.set_coefficients(network, 0.9, 0.1)
    stored = rs.stored_activations(network) if mode == "stored" else contextlib.nullcontext()
    with stored, torch.set_grad_enabled(mode != "without gradients"):
        expected = network(*inputs)
        for block in network.get_submodule("blocks"):
            block.register_forward_hook(lambda *call: alias(call[2]))
        assert torch.equal(network(*inputs), expected)


def test_another_tensor_in_its_place_is_refused_also_after_the_run_was_let_go_of() -> None:
    network, inputs = rewired(residual_stack, "exact")
    network.get_submodule("blocks")[1].register_forward_hook(lambda *call: call[2] * 2)
    for _ in range(2):
        with pytest.raises(rs.ChainBrokenError, match="not handed what"):
            loss_of(network, inputs)


@pytest.mark.parametrize(
    "fault",
    [
        *(backward_that_raises, out_of_memory_in_forward, out_of_memory_in_backward, interrupted),
        *(pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS[:5]),
    ],
    ids=lambda fault: fault.__name__.replace("_", " "),
)
@pytest.mark.parametrize("name", ["vit", pytest.param("resnet", marks=pytest.mark.slow)])
def test_the_step_after_a_fault_has_the_stored_gradients(name: str, fault: Callable[..., None]) -> None:
    network, inputs = rewired(NETWORKS[{"vit": "timm vit", "resnet": "timm resnet"}[name]], "exact")
    rs.set_coefficients(network, 0.9, 0.1)
    with rs.stored_activations(network):
        expected = step(network, inputs)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    fault(network, inputs)
    for key, buffer in network.named_buffers():  # what a whole step changes as it should
        buffer.copy_(buffers[key])
    assert_identical(step(network, inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_resident_memory_stays_flat_over_two_thousand_steps(arithmetic: str) -> None:
    network, inputs = rewired(lambda: (timm_vit()[0], (torch.randn(8, 3, 32, 32),)), arithmetic)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    process = psutil.Process()
    steps, warm = 2000, 500
    run(network, inputs, range(warm))
    before, resident = alive(), process.memory_info().rss
    for number in range(warm, warm + steps):
        run(network, inputs, range(number, number + 1))
        if number % len(FAULTS) == 0:
            whole_step(network, inputs)
            optimizer.step()
            network.zero_grad()
    assert alive() == before
    one_stream = 8 * 17 * 32 * 4  # bytes: images, tokens and classes, width, of a float
    assert process.memory_info().rss - resident < steps * one_stream / 4
