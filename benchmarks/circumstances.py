"""What a figure was measured on: command, date, machine and versions, for the head of every result file."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

LIBRARIES = ("revsurgeon", "torch", "torchvision", "timm", "transformers")


def circumstances() -> dict[str, object]:
    """The head of a result file, as JSON takes it."""
    spec = sys.modules["__main__"].__spec__
    program = f"-m {spec.name}" if spec is not None else Path(sys.argv[0]).name
    return {
        "command": " ".join(["python", program, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.system(),
        },
        "gpu": "not measured yet",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    """The processor's name as the kernel gives it, where it does."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
