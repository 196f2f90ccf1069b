"""The format of torch.export: a .pt2 archive, for `torch.export.load` with nothing but torch installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from revsurgeon.exporting.program import Program
from revsurgeon.rewiring.measure import Arguments, called, tensors_of

NOTE = "revsurgeon.json"
"""The file in the archive that says where the program comes from."""


def write(program: Program, path: Path, note: str) -> list[Path]:
    """Write a program, without the example that it was traced with: that may be somebody's data."""
    example = program.exported._example_inputs
    program.exported._example_inputs = None
    try:
        torch.export.save(program.exported, path, extra_files={NOTE: note})
    finally:
        program.exported._example_inputs = example
    return [path]


def opened(path: Path) -> Callable[[Arguments], list[torch.Tensor]]:
    """What runs the program in a file."""
    module = torch.export.load(path).module()
    return lambda arguments: tensors_of(called(module, arguments))
