"""Provenance: the weights are the source's, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from revsurgeon.artifact import Manifest
from revsurgeon.artifact.read import each_tensor
from revsurgeon.checks.check import Check, Found, Skipped
from revsurgeon.checks.report import Measurement
from revsurgeon.checks.subject import Options, Subject
from revsurgeon.errors import RevsurgeonError, SourceError
from revsurgeon.rewiring.measure import same_bits
from revsurgeon.sources.directory_source import open_demo, open_local
from revsurgeon.sources.hub_source import open_hub
from revsurgeon.sources.provenance import library_versions
from revsurgeon.sources.reference import Reference
from revsurgeon.sources.resolution import resolve

if TYPE_CHECKING:
    from revsurgeon.sources.source import Source


Read = Callable[[str], torch.Tensor | None]
"""Gives a tensor of the source by its name."""


def run(subject: Subject) -> Found:
    """Get the source as the manifest names it, and compare every tensor bit for bit; the threshold is 0.

    A source on the Hub is taken at the commit that the manifest records. Weights that were cast in the
    conversion are compared after the same cast, which must be one for all. Random weights are drawn again.
    """
    if subject.path is None:
        raise Skipped("a network in memory has no recorded source")
    if subject.manifest is None:
        raise Skipped("the artifact cannot be read")
    if subject.options.offline:
        raise Skipped("the source was not looked for (--offline)")
    manifest = subject.manifest
    _check_comparable(manifest)
    if subject.by_block:
        read, left = _source_files(manifest, subject.options)
    else:
        found, state = _source(manifest.source, subject.options)
        yield from _drift_of_source(manifest.source, found)
        read, left = state.get, set(state)
    different: dict[str, str] = {}
    casts: dict[torch.dtype, torch.dtype] = {}
    for name, tensor in each_tensor(subject.path, manifest):
        theirs = read(name)
        if theirs is None:
            problem: str | None = "the source does not have it"
        elif casts.setdefault(theirs.dtype, tensor.dtype) != tensor.dtype:
            problem = f"{tensor.dtype}, and others of the source's {theirs.dtype} are {casts[theirs.dtype]}"
        else:
            problem = _difference(tensor, theirs)
        if problem is not None:
            different[name] = problem
        left.discard(name)
    different |= dict.fromkeys(sorted(left), "the artifact does not have it")
    place, problem = next(iter(different.items()), (None, None))
    yield Measurement(
        what=f"tensors that are not the source's, of {len(manifest.tensors)}",
        value=float(len(different)),
        threshold=0.0,
        place=place,
        detail=problem,
    )


def _check_comparable(manifest: Manifest) -> None:
    """Raise `Skipped` where the weights cannot be expected to be the source's."""
    source = manifest.source
    if source.get("finetuned"):
        raise Skipped("the weights were finetuned after the conversion")
    if source.get("kind") == "module":
        raise Skipped("the network was made in memory, from no source that could be had again")
    if source.get("weights") == "random":
        libraries = source.get("libraries")
        recorded = libraries if isinstance(libraries, Mapping) else {}
        now = library_versions(recorded)
        other = [n for n, v in recorded.items() if n != "revsurgeon" and now.get(n) != v]
        if other:
            raise Skipped(f"the random weights were drawn with another version of {', '.join(other)}")


def _source(record: Mapping[str, Any], options: Options) -> tuple[Source, dict[str, torch.Tensor]]:
    """The source and its state dict.

    Raises:
        Skipped: it cannot be had, or not without leave to run code.
    """
    kind, spec = record.get("kind"), str(record.get("spec"))
    if kind == "python" and not options.allow_python:
        raise Skipped("the source is Python code, which is not called without --allow-python")
    on_hub = kind == "hub" and record.get("repo_id")
    try:
        found = resolve(
            f"hf:{record['repo_id']}" if on_hub else spec,
            revision=(record.get("commit") or record.get("revision")) if on_hub else None,
            random_weights=record.get("weights") == "random",
            allow_pickle=options.allow_pickle,
            trust_remote_code=options.trust_remote_code,
            token=options.token,
            cache_dir=options.cache_dir,
        )
        return found, found.module().state_dict()
    except SourceError as error:
        hint = f" {error.hint}" if error.hint else ""
        raise Skipped(f"the source cannot be had: {error.what}{hint}") from None
    except RevsurgeonError as error:
        raise Skipped(f"the source cannot be had: {error.what}") from None


def _source_files(manifest: Manifest, options: Options) -> tuple[Read, set[str]]:
    """A function that reads one tensor of the source's own files, and the names that these have.

    Raises:
        Skipped: they cannot be had, or hold other names or another format than the network's.
    """
    from safetensors import safe_open

    record = manifest.source
    kind, name = record.get("kind"), record.get("repo_id")
    if kind not in ("hub", "local", "demo") or record.get("weights") == "random":
        raise Skipped("the source has no files of its own to be read tensor by tensor (--stream)")
    try:
        if kind == "hub":
            revision = record.get("commit") or record.get("revision")
            checkpoint = open_hub(
                str(name),
                Reference("hub", str(name), None if revision is None else str(revision)),
                allow_pickle=False,
                trust_remote_code=False,
                token=options.token,
                cache_dir=options.cache_dir,
            )
        elif kind == "demo":
            checkpoint = open_demo("demo")
        else:
            spec = str(record.get("spec"))
            checkpoint = open_local(spec, Path(spec).expanduser(), allow_pickle=False)
        files = checkpoint.find_weights().files
    except (RevsurgeonError, OSError) as error:
        raise Skipped(f"the source cannot be had: {error}") from None
    places: dict[str, Path] = {}
    for file in files:
        with safe_open(str(file), framework="pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    if not manifest.tensors.keys() <= places.keys():
        raise Skipped(
            "the source's files use other names than its library does, which --stream cannot follow"
        )

    def read(name: str) -> torch.Tensor | None:
        with safe_open(str(places[name]), framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor

    return read, set(manifest.tensors)


def _drift_of_source(record: Mapping[str, Any], found: Source) -> Found:
    """Compare the hashes of the source's files with those that were recorded at the conversion."""
    recorded = record.get("files")
    if not isinstance(recorded, Mapping) or not recorded:
        return
    now = found.provenance.files
    other = [name for name in recorded if name in now and now[name] != recorded[name]]
    yield Measurement(
        what="files of the source that are not what they were at the conversion",
        value=float(len(other)),
        threshold=0.0,
        place=next(iter(other), None),
    )


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> str | None:
    if ours.shape != theirs.shape:
        return f"shape {list(ours.shape)}, the source's is {list(theirs.shape)}"
    theirs = theirs.to(ours.dtype) if theirs.is_floating_point() and ours.is_floating_point() else theirs
    if same_bits(ours, theirs):
        return None
    if ours.dtype != theirs.dtype:
        return f"{ours.dtype}, the source's is {theirs.dtype}"
    return f"{int((ours != theirs).sum())} of {ours.numel()} values differ"


CHECK = Check(run, needs="files")
