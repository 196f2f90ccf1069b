"""The subject that an artifact is: loaded as a user loads it, and beside it the unrewired network."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revsurgeon.artifact import Manifest, read_manifest, read_tensors
from revsurgeon.artifact.header import read_header
from revsurgeon.artifact.names import MANIFEST, WEIGHTS
from revsurgeon.checkpoints import load
from revsurgeon.checks.draw import drawing
from revsurgeon.checks.subject import Options, Subject
from revsurgeon.errors import ArtifactError, SourceError, UsageError
from revsurgeon.sources import build_architecture
from revsurgeon.sources.inputs import InputSpec
from revsurgeon.sources.tensors import main_dtype


def artifact_subject(
    path: Path,
    options: Options,
    *,
    name: str | None = None,
    into: nn.Module | None = None,
    example_inputs: Any = None,
    inputs: Sequence[str] = (),
    device: torch.device,
    dtype: str | None = None,
) -> Subject:
    """Open an artifact to verify it. One that is damaged is a subject too; what is no artifact is refused.

    Args:
        path: its directory or its one weight file.
        options: how to verify.
        name: for people; the path by default.
        into: the unrewired network, for an artifact that does not say how to build one.
        example_inputs: to run it on, instead of the manifest's.
        inputs: as `--input` takes them.
        device: to run it on.
        dtype: to cast it to first.

    Raises:
        ArtifactError: there is no artifact of this project.
        SourceError: its network is made by Python code, and that was not allowed.
        UsageError: inputs that it does not take.
    """
    manifest, unreadable = None, None
    try:
        manifest = read_manifest(path)
    except ArtifactError as error:
        if not _is_ours(path):
            raise
        unreadable = str(error)
    if manifest is not None:
        _check_buildable(manifest, into, options, path)
    bare = copy.deepcopy(into) if into is not None else None

    def cast(network: nn.Module) -> nn.Module:
        return (network.to(getattr(torch, dtype)) if dtype else network).to(device).eval()

    def make_network() -> nn.Module:
        return cast(
            load(
                path,
                into=into,
                allow_python=options.allow_python,
                trust_remote_code=options.trust_remote_code,
            )
        )

    @contextlib.contextmanager
    def make_original(_: nn.Module) -> Iterator[nn.Module]:
        """Built apart and filled by torch's own loading, so that nothing is shared with what is verified."""
        assert manifest is not None
        network = copy.deepcopy(bare) if bare is not None else _built(manifest, options)
        tensors = read_tensors(path, manifest)
        _take_types(network, tensors)
        network.load_state_dict(tensors, strict=True)
        yield cast(network)

    return Subject(
        name=name or str(path),
        make_network=make_network,
        make_original=make_original,
        draw=_drawing(manifest, example_inputs, inputs, dtype, device),
        options=options,
        path=path,
        manifest=manifest,
        unreadable=unreadable,
    )


def _is_ours(path: Path) -> bool:
    """Whether something that cannot be read is an artifact all the same, by its manifest."""
    if path.is_dir():
        weights = [
            file for file in (path / WEIGHTS, *sorted(path.glob("model-*.safetensors"))) if file.is_file()
        ]
        manifest = path / MANIFEST  # many things have a file of that name
        ours = manifest.is_file() and manifest.read_bytes().startswith(b"format_version:")
        return ours or any(map(_has_manifest, weights))
    return _has_manifest(path)


def _has_manifest(file: Path) -> bool:
    try:
        return "revsurgeon" in read_header(file).metadata
    except ArtifactError:  # damaged; a manifest's name in the first bytes still tells
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return b'"revsurgeon"' in opened.read(1 << 16)


def _check_buildable(manifest: Manifest, into: nn.Module | None, options: Options, path: Path) -> None:
    if into is not None:
        return
    if not manifest.build:
        raise ArtifactError(
            "the artifact does not say how to build its network.",
            where=str(path),
            hint="Build it yourself and pass it: revsurgeon.verify(path, into=network, example_inputs=...).",
        )
    if manifest.build.get("library") == "python" and not options.allow_python:
        raise SourceError(
            "the network is made by Python code that is not part of the artifact.",
            where=str(manifest.build.get("entry")),
            hint="If you trust it, add --allow-python; the working directory is looked at first.",
        )


def _built(manifest: Manifest, options: Options) -> nn.Module:
    build: Any = dict(manifest.build)
    config = None if manifest.config is None else manifest.config.encode()
    return build_architecture(
        build, config, allow_python=options.allow_python, trust_remote_code=options.trust_remote_code
    )


def _take_types(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a network the types of the weights that are to be copied into it, as casting the source did."""
    built, stored = main_dtype(dict(network.named_parameters())), main_dtype(tensors)
    if built != stored and stored is not None:
        network.to(getattr(torch, stored))
    for name, parameter in network.named_parameters():
        if name in tensors and tensors[name].dtype != parameter.dtype:
            parameter.data = parameter.data.to(tensors[name].dtype)


def _drawing(
    manifest: Manifest | None,
    example_inputs: Any,
    inputs: Sequence[str],
    dtype: str | None,
    device: torch.device,
) -> Callable[[int, int], Any]:
    if example_inputs is not None:
        return drawing(example_inputs, dtype, device)
    spec = InputSpec.from_dict(manifest.inputs) if manifest is not None and manifest.inputs else InputSpec()
    spec = spec.override(inputs)
    if not spec.entries and manifest is not None:
        raise UsageError(
            "the artifact does not say what its network takes.",
            hint="Give example inputs: --input NAME=SHAPE[:DTYPE], or example_inputs= in Python.",
        )
    return drawing(spec.with_float_dtype(dtype) if dtype else spec, None, device)
