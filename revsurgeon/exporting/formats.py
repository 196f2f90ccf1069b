"""The formats that a network can be exported to, and what is written in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from revsurgeon.errors import UsageError
from revsurgeon.exporting import onnx_program, torch_program
from revsurgeon.exporting.program import Program
from revsurgeon.rewiring.measure import Arguments

SUFFIXES = {"torch-export": ".pt2", "onnx": ".onnx", "weights": ".safetensors"}
"""The ending of each format's file."""


@dataclass(frozen=True)
class Format:
    """How a program is written, and run again.

    Attributes:
        write: writes it with a note of where it comes from (JSON), and returns the files.
        opened: reads a file, and returns the function that runs it.
    """

    write: Callable[[Program, Path, str], list[Path]]
    opened: Callable[[Path], Callable[[Arguments], list[torch.Tensor]]]


PROGRAMS = {
    "torch-export": Format(torch_program.write, torch_program.opened),
    "onnx": Format(onnx_program.write, onnx_program.opened),
}


def check_format(to: str, output: str | Path | None) -> None:
    """See that a format exists, that its packages are there, and that the file's name ends as it must.

    Raises:
        UsageError: one of these is not so.
    """
    if to not in SUFFIXES:
        raise UsageError(f"there is no export to {to!r}.", hint=f"Choose one of: {', '.join(SUFFIXES)}.")
    if to == "onnx":
        onnx_program.check_packages()
    if output is not None and Path(output).suffix != SUFFIXES[to]:
        raise UsageError(
            f"the name of the file must end in {SUFFIXES[to]}.",
            where=str(output),
            hint="Who loads it tells the format by that.",
        )
