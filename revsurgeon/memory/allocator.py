"""What a device's allocator says of a piece of work: most bytes at one time, and those left at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

_ALLOCATION = "[memory]"  # the profiler's events that are an allocation or, with negative bytes, its end


@dataclass
class Allocated:
    """Bytes, above those there were before.

    Attributes:
        peak: the most at one time.
        end: at the end.
        reserved: what the allocator held of the device at most, in all; None on a CPU.
    """

    peak: int = 0
    end: int = 0
    reserved: int | None = None


@contextmanager
def watching(device: torch.device) -> Iterator[Allocated]:
    """Watch the allocator inside this context; the figures are there behind it."""
    found = Allocated()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.peak = torch.cuda.max_memory_allocated(device) - before
        found.end = torch.cuda.memory_allocated(device) - before
        found.reserved = torch.cuda.max_memory_reserved(device)
        return
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        yield found
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == _ALLOCATION]
    for event in sorted(events, key=lambda e: e.start_ns()):
        found.end += event.nbytes()
        found.peak = max(found.peak, found.end)


def available(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    found = []
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    information = Path("/proc/meminfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                found = [int(line.split()[1]) * 1024]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists():  # a container's
        text = limit.read_text(encoding="utf-8").strip()
        if text.isdigit():
            found.append(int(text) - int(used.read_text(encoding="utf-8")))
    return min(found, default=None)


def too_large(network: nn.Module) -> str | None:
    """What a network's parameters take and what the CPU has left, in words, where they do not fit; else None.

    Args:
        network: on any device, the meta device for example.
    """
    needed = sum(p.numel() * p.element_size() for p in network.parameters())
    room = available(torch.device("cpu"))
    if room is None or needed <= room:
        return None
    return f"{needed / 2**30:.1f} GiB of weights, {room / 2**30:.1f} GiB are left"
