"""Measure one row of the comparison: bytes, peak, and the error of its gradients.

The peak on a CPU is the running sum of what torch's allocator hands out and gets back, as the profiler
records it, above what there was before the step. (torch.distributed's MemTracker agrees with it on plain
networks but counts only results of operators, not what a kernel allocates inside; and it goes on counting
tensors that a custom autograd.Function made and that the allocator has got back.) On CUDA the allocator
itself keeps the peak.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.peers_networks import RATE, Subject
from benchmarks.peers_ways import Candidate, Way
from benchmarks.saved_bytes import ALLOCATION, call, count_kept

Gradients = list[torch.Tensor | None]


def measure_row(subject: Subject, way: Way, *, batch: int, device: str = "cpu") -> dict[str, Any]:
    """All figures of one row but its time.

    Args:
        subject: the network.
        way: to train it.
        batch: samples.
        device: "cpu" or "cuda".

    Returns:
        Bytes, relative errors and the distance of the output from the source network's, as JSON takes it.

    Raises:
        NotMeasured: the way is not installed, or cannot express the network.
    """
    inputs = on_device(subject.example(batch), device)
    network = subject.make().to(device)
    parameters = list(network.parameters())
    source = call(network, inputs).detach()
    reset_statistics(network)
    candidate = way.prepare(subject, network, inputs, False)

    output, gradients = step(candidate, parameters, inputs)
    figures: dict[str, Any] = {
        "distance": relative_error([output], [source]),
        "statistics_moved": _statistics_moved(network),
    }
    figures |= kept_bytes(candidate, network, inputs)
    figures["peak"] = _peak(candidate, parameters, inputs, device)
    with dropping_gradients(parameters):
        figures["peak_without_gradients"] = _peak(candidate, parameters, inputs, device)
    del network, parameters, candidate, output
    figures["error_float64"] = relative_error(gradients, _reference(subject, way, batch, device))
    del gradients
    return figures | {"error_dropout": _error_with_dropout(subject, way, inputs, device)}


def reset_statistics(network: nn.Module) -> None:
    """Let batch norm forget the forwards so far."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()


def _statistics_moved(network: nn.Module) -> int | None:
    """How often one step moved batch norm's running statistics, at most; None without any."""
    counts = [int(b) for name, b in network.named_buffers() if name.endswith("num_batches_tracked")]
    return max(counts, default=None)


def on_device(inputs: Any, device: str) -> Any:
    """The inputs, moved."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), inputs)


def _reference(subject: Subject, way: Way, batch: int, device: str) -> Gradients:
    """Gradients of the same function in float64, with stored activations."""
    network = subject.make(dtype=torch.float64).to(device)
    parameters = list(network.parameters())
    inputs = on_device(subject.example(batch, torch.float64), device)
    candidate = way.prepare(subject, network, inputs, True)
    return step(candidate, parameters, inputs, stored=True)[1]


def _error_with_dropout(subject: Subject, way: Way, inputs: Any, device: str) -> float:
    """Distance of the gradients from those of stored activations under the same seeds, dropout on."""
    network = subject.make(RATE).to(device)
    parameters = list(network.parameters())
    candidate = way.prepare(subject, network, inputs, False)
    output, gradients = step(candidate, parameters, inputs)
    expected_output, expected = step(candidate, parameters, inputs, stored=True)
    if relative_error([output], [expected_output]) > 1e-3:
        raise AssertionError("the two forwards drew different random numbers: their gradients differ anyway")
    return relative_error(gradients, expected)


def step(
    candidate: Candidate, parameters: Sequence[nn.Parameter], inputs: Any, *, stored: bool = False
) -> tuple[torch.Tensor, Gradients]:
    """One forward and backward from fixed seeds: output and gradients."""
    forget(parameters)
    with candidate.stored(candidate) if stored else nullcontext():
        output = run(candidate, inputs)
    return output, [None if p.grad is None else p.grad.detach().clone() for p in parameters]


def run(candidate: Candidate, inputs: Any) -> torch.Tensor:
    """Forward, and backward of a fixed random projection of the output."""
    torch.manual_seed(0)
    random.seed(0)  # RevTorch draws its seeds from here
    network: Any = candidate.network
    output = call(network, inputs)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(output.shape, generator=generator).to(output)
    (output * weights).sum().backward()
    return output.detach()


def forget(parameters: Sequence[nn.Parameter]) -> None:
    """Let go of all gradients."""
    for parameter in parameters:
        parameter.grad = None


def relative_error(actual: Sequence[torch.Tensor | None], expected: Sequence[torch.Tensor | None]) -> float:
    """``||actual - expected|| / ||expected||``, all tensors together; a missing one is zero."""
    difference = norm = 0.0
    for a, e in zip(actual, expected, strict=True):
        if e is not None:
            norm += float(e.double().square().sum())
        if a is not None or e is not None:
            left = 0.0 if a is None else a.double()
            difference += float(torch.as_tensor(left - (0.0 if e is None else e.double())).square().sum())
    return (difference / norm) ** 0.5


def kept_bytes(candidate: Candidate, network: nn.Module, inputs: Any) -> dict[str, int | None]:
    """What one forward keeps: through autograd's hooks, and as the allocator counts."""
    called: Any = candidate.network
    device = next(network.parameters()).device
    random.seed(0)
    kept = count_kept(called, inputs, (), allocator=device.type == "cpu")
    held = kept.held
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        output = call(called, inputs)
        held = torch.cuda.memory_allocated(device) - before
        del output
    return {"saved": kept.saved, "held": held}


def _peak(candidate: Candidate, parameters: Sequence[nn.Parameter], inputs: Any, device: str) -> int:
    forget(parameters)
    peak = peak_bytes(lambda: run(candidate, inputs), device)
    forget(parameters)
    return peak


def peak_bytes(work: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that were allocated at one time during some work, above those before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == ALLOCATION]
    allocated = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


@contextmanager
def dropping_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let go of every parameter's gradient as soon as backward has added it up."""

    def drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(drop) for p in parameters if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
