"""From what a user wrote to a source: picks the kind and asks it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from revsurgeon.errors import UsageError
from revsurgeon.sources.reference import Reference, parse_reference

if TYPE_CHECKING:
    from revsurgeon.sources.source import Source


def resolve(
    spec: str,
    *,
    revision: str | None = None,
    random_weights: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    num_classes: int | None = None,
) -> Source:
    """Return the source that `spec` names. Its config is read now, its weights when `module()` is called.

    Args:
        spec: `org/name[@revision]`, `timm:name`, `torchvision:name`, `transformers:type`, a path,
            `python:module:factory` or `demo`.
        revision: branch, tag or commit of a Hub repository.
        random_weights: draw the weights instead of loading them, the same at every run.
        allow_pickle: also read `.bin` and `.pth` files, as tensors only.
        trust_remote_code: run Python code that the source ships.
        token: for the Hub; None takes the one that you are logged in with, False takes none.
        cache_dir: where downloads are kept; None means the Hub's own default.
        num_classes: replace the classification head by one with so many classes.

    Raises:
        SourceError: no such source, or one that cannot be read.
        HubError: the Hub or the network did not deliver.
        UsageError: arguments that contradict each other.
    """
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes is {num_classes}; a head needs at least one class.")
    reference = parse_reference(spec, revision)
    if reference.kind in ("timm", "torchvision", "transformers"):
        return _of_library(spec, reference, random_weights, num_classes, token, cache_dir)
    if reference.kind == "python":
        return _of_python(spec, reference, random_weights)

    from revsurgeon.sources import directory_source, hub_source

    if reference.kind == "hub":
        checkpoint = hub_source.open_hub(
            spec,
            reference,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            token=token,
            cache_dir=cache_dir,
        )
    elif reference.kind == "demo":
        checkpoint = directory_source.open_demo(spec)
    else:
        checkpoint = directory_source.open_local(spec, Path(reference.name), allow_pickle=allow_pickle)
    return directory_source.source_of(
        checkpoint,
        random_weights=random_weights,
        trust_remote_code=trust_remote_code,
        num_classes=num_classes,
    )


def _of_library(
    spec: str,
    reference: Reference,
    random_weights: bool,
    num_classes: int | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
) -> Source:
    from revsurgeon.sources import timm_registry, timm_source, torchvision_source, transformers_source
    from revsurgeon.sources.directory_source import short_name
    from revsurgeon.sources.provenance import library_versions
    from revsurgeon.sources.source import Build, Loader, Provenance, Source

    repo_id: str | None = None
    config: bytes | None = None
    build: Build
    loader: Loader
    if reference.kind == "timm":
        build = timm_source.build_of_name(reference.name, num_classes)
        inputs, config = timm_source.inputs_of(build), timm_source.config_of(build)
        pretrained = timm_registry.Pretrained(reference.name, token, cache_dir)
        repo_id = None if random_weights else pretrained.repo_id
        loader = timm_source.TimmLoader(
            build, pretrained.locate, random_weights, str(cache_dir) if cache_dir else None
        )
    elif reference.kind == "torchvision":
        build = torchvision_source.build_of_name(reference.name, num_classes, pretrained=not random_weights)
        inputs, loader = torchvision_source.inputs_of(build), torchvision_source.TorchvisionLoader(build)
    else:
        build = transformers_source.build_of_type(reference.name, num_classes)
        inputs, config = transformers_source.inputs_of(build), transformers_source.config_of(build)
        loader = transformers_source.TransformersLoader(build, random_weights=random_weights)
    libraries = [reference.kind, *(["huggingface-hub"] if repo_id else [])]
    provenance = Provenance(
        spec,
        reference.kind,
        repo_id,
        libraries=library_versions(libraries),
        weights="random" if random_weights or reference.kind == "transformers" else "pretrained",
    )
    return Source(short_name(reference.name), provenance, build, config, inputs, loader)


def _of_python(spec: str, reference: Reference, random_weights: bool) -> Source:
    from revsurgeon.sources import python_source
    from revsurgeon.sources.directory_source import short_name
    from revsurgeon.sources.provenance import library_versions
    from revsurgeon.sources.source import Provenance, Source

    build = python_source.build_of_name(reference.name)
    loader = python_source.PythonLoader(build)
    inputs = loader.inputs()
    provenance = Provenance(
        spec, "python", libraries=library_versions([]), weights="random" if random_weights else "pretrained"
    )
    name = short_name(reference.name.rpartition(":")[2].rpartition(".")[2])
    return Source(name, provenance, build, None, inputs, loader)
