"""Export a network: trace it, write beside the output, run that file, compare, and only then rename it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.probe import ExampleInputs, as_arguments
from revsurgeon.checkpoints import load
from revsurgeon.errors import UnsupportedModelError, UsageError, VerificationError
from revsurgeon.exporting.difference import difference, tolerance
from revsurgeon.exporting.formats import PROGRAMS, SUFFIXES, check_format
from revsurgeon.exporting.inference import for_inference, outputs_of, plain_outputs
from revsurgeon.exporting.program import Batch, Program, traced
from revsurgeon.exporting.publish import check_target, published
from revsurgeon.exporting.weights import write_weights
from revsurgeon.inference_mode import outside_inference_mode
from revsurgeon.origin import origin_of
from revsurgeon.reversible.coefficients import get_coefficients, some_chains
from revsurgeon.reversible.sharding import has_sharded_parts
from revsurgeon.rewiring.measure import Arguments, distance, other_batch, tensors_of
from revsurgeon.rewiring.wrappers import unwrapped
from revsurgeon.sources.batch_file import read_batch
from revsurgeon.sources.inputs import InputSpec


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the file.
        files: all files: an ONNX program of more than 2 GB keeps its weights in a second one.
        to: "torch-export", "onnx" or "weights".
        alpha: coefficient of the original skips in the program; 1 for weights.
        beta: coefficient of the added ones in the program; 0 for weights.
        arithmetic: of the streams in the program; None at beta = 0, where there is one stream.
        batch: "any", or the one size of the batch that the program takes; None for weights.
        reason: why the batch has one size only.
        difference: the largest relative difference of an output from the network's; 0 if all bits are equal.
        tolerance: what it may be at most.
        drift: for weights, how far the plain network's outputs are from those of the rewired one at its
            present coefficients, relative to them; None for programs.
    """

    path: Path
    files: tuple[Path, ...]
    to: str
    alpha: float
    beta: float
    arithmetic: str | None
    batch: str | int | None
    reason: str | None
    difference: float
    tolerance: float
    drift: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON types."""
        return {**asdict(self), "path": str(self.path), "files": [str(file) for file in self.files]}


@outside_inference_mode
def export(
    model: nn.Module | str | Path,
    to: str = "torch-export",
    *,
    output: str | Path | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    arithmetic: str | None = None,
    batch: Batch = "auto",
    example_inputs: ExampleInputs | None = None,
    inputs: Sequence[str] | None = None,
    real_input: str | Path | None = None,
    force: bool = False,
    allow_python: bool = False,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Export:
    """Write a finetuned network as a program for inference, or its weights for the unrewired network.

    The program computes what the network does in evaluation mode without gradients, at fixed coefficients:
    its plain equations, in exact arithmetic with their rounding to the grid. It is run from the file, at two
    batch sizes where the batch is open, and compared with the network, before the file gets its name.

    Args:
        model: a rewired network, or where an artifact is: its directory, weight file or Hub id.
        to: "torch-export", a file for `torch.export.load`; "onnx", for ONNX Runtime (needs the extra
            ``revsurgeon[export]``); "weights", a safetensors file with the tensors under the source's names.
        output: the file; None takes the artifact's name with .pt2, .onnx or .safetensors, here.
        alpha: coefficient of the original skips; None takes the network's present one.
        beta: coefficient of the added ones; None takes the network's present one.
        arithmetic: "float" or "exact"; None takes the network's.
        batch: "any": the program takes batches of any size; "fixed": of the example's; "auto": any size
            where torch.export can show that, otherwise the example's.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; None draws inputs by
            what the artifact says of them.
        inputs: ``NAME=SHAPE[:DTYPE]`` for other shapes than the artifact says.
        real_input: an .npy or .pt file with a batch to compare on.
        force: replace what is there.
        allow_python, trust_remote_code, token, cache_dir: as for `revsurgeon.load`.
        progress: is told what happens next, in words.

    Returns:
        What was written, and how it compares with the network.

    Raises:
        UsageError: an option that makes no sense, a package that is missing, an output that is there or whose
            directory is not, or a network that cannot be written in this format; nothing is written then.
        VerificationError: the program computes something else; nothing is written.
        ArtifactError, SourceError, HubError: as `revsurgeon.load` raises them.
    """
    check_format(to, output)
    if to == "weights" and not (alpha is beta is arithmetic is None):
        raise UsageError(
            "weights have no coefficients.",
            hint="Leave out alpha, beta and arithmetic, or choose torch-export or onnx.",
        )
    target = _target(model, to, output)
    check_target(target, force=force)
    if not isinstance(model, nn.Module):
        progress(f"Loading {model}")
        model = load(
            model,
            allow_python=allow_python,
            trust_remote_code=trust_remote_code,
            token=token,
            cache_dir=cache_dir,
        )
    model = unwrapped(model)
    some_chains(model)
    if has_sharded_parts(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is sharded: no process has all of its weights.",
            hint="Export a network that is not sharded and has loaded the gathered weights.",
        )
    arguments = _arguments(model, example_inputs, inputs, real_input)
    if to == "weights":
        return _weights(model, arguments, target, force, progress)
    with for_inference(model, alpha, beta, arithmetic), plain_outputs(model):
        progress("Tracing")
        program = traced(model, arguments, batch)
        result = Export(
            path=target,
            files=(),
            to=to,
            alpha=get_coefficients(model)[0],
            beta=get_coefficients(model)[1],
            arithmetic=some_chains(model)[0].arithmetic if get_coefficients(model)[1] else None,
            batch="any" if program.any_batch else program.batch_size,
            reason=program.reason,
            difference=0.0,
            tolerance=tolerance(model, program.operations),
            drift=None,
        )
        note = json.dumps(_provenance(model, result))
        with published(target, force=force) as stage:
            progress("Writing")
            files = PROGRAMS[to].write(program, stage / target.name, note)
            progress("Comparing with the network")
            found = _compared(model, program, PROGRAMS[to].opened(stage / target.name), result.tolerance)
    return replace(result, files=tuple(target.with_name(file.name) for file in files), difference=found)


def _compared(
    model: nn.Module, program: Program, run: Callable[[Arguments], list[torch.Tensor]], allowed: float
) -> float:
    """The largest difference of the written program's outputs from the network's.

    Raises:
        VerificationError: it is larger than allowed.
    """
    cases = [program.arguments, *(other_batch(program.arguments) if program.any_batch else ())]
    worst = 0.0
    for arguments in cases:
        expected = outputs_of(model, arguments)
        found = difference(run(arguments), expected)
        if not found <= allowed:
            sizes = ", ".join("x".join(map(str, t.shape)) for t in tensors_of(arguments))
            raise VerificationError(
                "the exported program computes something else than the network; nothing was written.",
                where=f"inputs of {sizes}: relative difference {found:.2g}, allowed {allowed:.2g}",
                hint="Try --batch fixed, or the other format.",
            )
        worst = max(worst, found)
    return worst


def _weights(
    model: nn.Module,
    arguments: Arguments,
    target: Path,
    force: bool,
    progress: Callable[[str], None],
) -> Export:
    progress("Comparing the plain network with the rewired one")
    with for_inference(model, None, None, None):
        expected = outputs_of(model, arguments)
    with for_inference(model, 1.0, 0.0, None):
        drift = distance(outputs_of(model, arguments), expected)
    with published(target, force=force) as stage:
        progress("Writing")
        write_weights(model, stage / target.name)
    return Export(target, (target,), "weights", 1.0, 0.0, None, None, None, 0.0, 0.0, drift)


def _arguments(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    inputs: Sequence[str] | None,
    real_input: str | Path | None,
) -> Arguments:
    """Example arguments, where the network's parameters are."""
    origin = origin_of(model)
    if example_inputs is not None:
        if inputs or real_input is not None:
            raise UsageError("example inputs were given twice.", hint="Give example_inputs alone.")
        examples: Any = example_inputs
    else:
        spec = InputSpec.from_dict(origin.inputs) if origin and origin.inputs else InputSpec()
        spec = spec.override(inputs or ())
        if not spec.entries:
            raise UsageError("it is not known how the network is called.", hint="Give example_inputs=.")
        examples = spec.example(batch_size=2) if real_input is None else read_batch(real_input, spec)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    moved: Arguments = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), as_arguments(examples))
    return moved


def _target(model: nn.Module | str | Path, to: str, output: str | Path | None) -> Path:
    if isinstance(model, nn.Module):
        return Path(output or type(unwrapped(model)).__name__ + SUFFIXES[to]).expanduser()
    source = Path(str(model).partition("@")[0]).expanduser().resolve()
    name = source.stem if source.is_file() else source.name
    target = Path(output or name + SUFFIXES[to]).expanduser()
    if target.resolve() == source or target.resolve().parent == source:
        raise UsageError(
            "the output is the converted network itself, or in its directory.",
            where=str(target),
            hint="Name another file with --output.",
        )
    return target


def _provenance(model: nn.Module, result: Export) -> dict[str, Any]:
    """What a program's file says about itself."""
    origin = origin_of(model)
    return {
        "revsurgeon": importlib.metadata.version("revsurgeon"),
        "torch": torch.__version__,
        "source": dict(origin.source) if origin else {"spec": type(model).__name__, "kind": "module"},
        "alpha": result.alpha,
        "beta": result.beta,
        "arithmetic": result.arithmetic,
        "batch": result.batch,
    }
