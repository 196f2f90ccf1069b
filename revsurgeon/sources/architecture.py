"""Builds the bare architecture of a converted network again, from the record that the artifact keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from revsurgeon.errors import ArtifactError, SourceError

if TYPE_CHECKING:
    from torch import nn

    from revsurgeon.sources.source import Build


def build_architecture(
    build: Build,
    config: bytes | None = None,
    *,
    device: Literal["cpu", "meta", "stand-ins"] = "cpu",
    allow_python: bool = False,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Return the unrewired network of a build, in eval mode, for weights to be loaded into.

    Nothing is ever downloaded. On the CPU its parameters are allocated but hold no particular values; its
    buffers, of which a state dict has only the persistent ones, are right.

    Args:
        build: as in `Source.build` and in the manifest.
        config: the artifact's config.json, which wins over the settings that the build repeats.
        device: `meta` takes no memory at all. `stand-ins` is the CPU, with parameters that take none and hold
            zeros: for weights that are taken in one part at a time.
        allow_python: call a factory of the user's own code, if the build names one.
        trust_remote_code: run code that the source shipped, if the build names it.

    Raises:
        ArtifactError: a record that is not of this form.
        SourceError: the library does not have the architecture, or its code needs leave to run.
    """
    from revsurgeon.sources import python_source, timm_source, torchvision_source, transformers_source
    from revsurgeon.sources.construction import building, on_meta, with_empty_weights, without_weights

    _check(build)
    library = build["library"]
    if library == "python" and not allow_python:
        raise SourceError(
            f"the network is made by Python code that is not part of the artifact: {build['entry']}",
            hint="If you trust that code, allow it; it is looked for in the working directory first.",
        )

    def construct() -> nn.Module:
        if library == "timm":
            return timm_source.construct(build)
        if library == "torchvision":
            return torchvision_source.construct(build)
        if library == "python":
            return python_source.construct(build)
        return transformers_source.construct(build, config, trust_remote_code=trust_remote_code)

    make = {"cpu": with_empty_weights, "meta": on_meta, "stand-ins": without_weights}[device]
    if library == "python":  # the errors of the user's own code are left as they are
        return make(construct).eval()
    with building(build["entry"]):
        return make(construct).eval()


def _check(build: Build) -> None:
    if (
        not isinstance(build, dict)
        or build.get("library") not in ("timm", "transformers", "torchvision", "python")
        or not isinstance(build.get("entry"), str)
        or not isinstance(build.get("arguments"), dict)
    ):
        raise ArtifactError(
            "the manifest does not say how to build the network.",
            where=f"build: {str(build)[:200]}",
            hint="Convert the source again.",
        )
