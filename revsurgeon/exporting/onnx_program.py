"""The format of ONNX: made by torch's exporter, run by ONNX Runtime."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from revsurgeon.errors import UsageError
from revsurgeon.exporting.program import CANNOT, Program, first_lines
from revsurgeon.rewiring.measure import Arguments, tensors_of

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights up to which they are in the file itself; protobuf ends at 2 GiB."""


def check_packages() -> None:
    """See that the packages are there, before any work is done.

    Raises:
        UsageError: one is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"an export to ONNX needs {' and '.join(missing)}.",
            hint='Install what is missing: pip install "revsurgeon[export]"',
        )


def write(program: Program, path: Path, note: str) -> list[Path]:
    """Write a program, large weights into a second file, with the note in the model's metadata.

    Raises:
        UsageError: torch's exporter does not know an operation.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.onnx")  # axes that share one name, for example
            made: Any = torch.onnx.export(
                program.exported,
                dynamo=True,
                verbose=False,
                dynamic_shapes=program.dynamic_shapes,
                output_names=_output_names(program.exported),
            )
    except CANNOT as error:
        raise UsageError(
            "the network cannot be written as ONNX.",
            where=first_lines(error),
            hint="Export it with --to torch-export.",
        ) from error
    made.model.metadata_props["revsurgeon"] = note
    tensors = [*program.exported.state_dict.values(), *program.exported.tensor_constants.values()]
    made.save(path, external_data=sum(tensor.nbytes for tensor in tensors) > LARGEST_FILE)
    return [path, *path.parent.glob(f"{path.name}.data")]


def _output_names(exported: torch.export.ExportedProgram) -> list[str]:
    """The keys of a dictionary that is given out; otherwise output, or output_0, output_1, ..."""
    spec: Any = exported.call_spec.out_spec
    if spec.type is dict and all(child.is_leaf() for child in spec.children()):
        return [str(key) for key in spec.context]
    return ["output"] if spec.num_leaves == 1 else [f"output_{i}" for i in range(spec.num_leaves)]


def opened(path: Path) -> Callable[[Arguments], list[torch.Tensor]]:
    """What runs the program in a file, on the CPU.

    Raises:
        UsageError: ONNX Runtime does not take it, when it is opened or run.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    known = [kind for kind in vars(state).values() if isinstance(kind, type)]
    errors: tuple[type[Exception], ...] = tuple(kind for kind in known if issubclass(kind, Exception))

    def refused(error: Exception) -> UsageError:
        return UsageError(
            "ONNX Runtime does not run the exported program.",
            where=first_lines(error),
            hint="Its kernels for the CPU do not take every dtype. Export it with --to torch-export.",
        )

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except errors as error:
        raise refused(error) from error
    names = [entry.name for entry in session.get_inputs()]

    def run(arguments: Arguments) -> list[torch.Tensor]:
        named = arguments[1]
        given = named if named.keys() == set(names) else dict(zip(names, tensors_of(arguments), strict=True))
        try:
            arrays = {name: tensor.cpu().numpy() for name, tensor in given.items()}
        except TypeError as error:  # numpy has no bfloat16
            raise refused(error) from error
        try:
            return [torch.from_numpy(array) for array in session.run(None, arrays)]
        except errors as error:
            raise refused(error) from error

    return run
