"""What a figure was measured on: command, date, machine and versions, for the head of every result file."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from revsurgeon.memory.surroundings import processor

LIBRARIES = ("revsurgeon", "torch", "torchvision", "timm", "transformers")


def circumstances() -> dict[str, object]:
    """The head of a result file, as JSON takes it."""
    spec = sys.modules["__main__"].__spec__
    program = f"-m {spec.name}" if spec is not None else Path(sys.argv[0]).name
    return {
        "command": " ".join(["python", program, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.system(),
        },
        "gpu": "not measured yet",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
