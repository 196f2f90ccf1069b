"""Networks from a directory with config.json and weights, or from one weights file beside its config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revsurgeon.errors import SourceError
from revsurgeon.sources import timm_source, transformers_source
from revsurgeon.sources.provenance import library_versions, sha256_of
from revsurgeon.sources.source import Kind, Provenance, Source
from revsurgeon.sources.weights import WeightFiles, find_weights, inside, one_file

CONFIG = "config.json"
_LARGEST_CONFIG = 20_000_000  # bytes of JSON


@dataclass(frozen=True)
class Checkpoint:
    """A directory that holds a config.json, and how to get at its weights.

    Attributes:
        spec, kind, name: of the source that this is.
        directory: where config.json lies.
        find_weights: returns the files of the weights; not called before they are needed.
        trusted: directories that links in `directory` may lead to.
        repo_id, revision, commit: of a Hub repository.
        code: fetches the Python code that the source ships; returns where transformers finds it: a
            directory, or `ORG/NAME@COMMIT` in the download cache.
    """

    spec: str
    kind: Kind
    name: str
    directory: Path
    find_weights: Callable[[], WeightFiles]
    trusted: tuple[Path, ...] = ()
    repo_id: str | None = None
    revision: str | None = None
    commit: str | None = None
    code: Callable[[], str] | None = None


def open_local(spec: str, path: Path, *, allow_pickle: bool) -> Checkpoint:
    """Return the checkpoint of a local directory or file.

    Raises:
        SourceError: a file of another kind, or a bare weights file without its config.json.
    """
    trusted = _download_cache(path)
    if path.is_dir():
        directory, name = path, path.resolve().name
    else:
        directory = path.parent
        name = (
            directory.resolve().name if path.stem.split(".")[0] in ("model", "pytorch_model") else path.stem
        )
        if (
            path.suffix not in (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
            and path.name.count("index.json") == 0
        ):
            raise SourceError(
                "the file is no weights file.",
                where=str(path),
                hint="Give a .safetensors file or its directory.",
            )
    if not (directory / CONFIG).is_file():
        raise SourceError(
            f"there is no {CONFIG} beside the weights, so their architecture is unknown.",
            where=str(directory / CONFIG),
            hint="Put its config.json there, or write a function that builds it: python:module:function.",
        )

    def weights() -> WeightFiles:
        if path.is_dir():
            return find_weights(directory, allow_pickle=allow_pickle, trusted=trusted)
        return one_file(path, allow_pickle=allow_pickle, trusted=trusted)

    return Checkpoint(spec, "local", name, directory, weights, trusted, code=lambda: str(directory.resolve()))


def open_demo(spec: str) -> Checkpoint:
    """Return the small trained network that is shipped in the package."""
    directory = Path(__file__).parent / "demo"
    return Checkpoint(spec, "demo", "demo", directory, lambda: find_weights(directory))


def source_of(
    checkpoint: Checkpoint, *, random_weights: bool, trust_remote_code: bool, num_classes: int | None
) -> Source:
    """Return the source that a checkpoint is; timm and transformers are told apart by its config.json.

    Raises:
        SourceError: a config.json that is of neither, or an architecture that the library does not have.
    """
    path = inside(checkpoint.directory, CONFIG, checkpoint.trusted)
    if path.stat().st_size > _LARGEST_CONFIG:
        raise SourceError("config.json is too large to be one.", where=str(path))
    content = path.read_bytes()
    config = _parse(content, path)
    if timm_source.is_timm_config(config):
        library = "timm"
        build = timm_source.build_of_config(config, num_classes)
        inputs = timm_source.inputs_of(build)
        loader: Any = timm_source.TimmLoader(
            build, lambda: timm_source.locate_files(checkpoint.find_weights()), random_weights
        )
    else:
        library = "transformers"
        build = transformers_source.build_of_config(
            config, num_classes=num_classes, trust_remote_code=trust_remote_code, code=checkpoint.code
        )
        inputs = transformers_source.inputs_of(build, trust_remote_code=trust_remote_code)
        loader = transformers_source.TransformersLoader(
            build,
            checkpoint.find_weights,
            random_weights,
            head_may_be_new=num_classes is not None or not config.get("architectures"),
            trust_remote_code=trust_remote_code,
        )
    kept = content
    if num_classes is not None:  # the source's own config says another number
        kept = timm_source.config_of(build) if library == "timm" else transformers_source.config_of(build)
    libraries = [library, *(["huggingface-hub"] if checkpoint.kind == "hub" else [])]
    provenance = Provenance(
        spec=checkpoint.spec,
        kind=checkpoint.kind,
        repo_id=checkpoint.repo_id,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        files={CONFIG: sha256_of(content)},
        libraries=library_versions(libraries),
        weights="random" if random_weights else "pretrained",
    )
    return Source(short_name(checkpoint.name), provenance, build, kept, inputs, loader)


def short_name(text: str) -> str:
    """Return a name that is fit for a file, made from any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "network"


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            "config.json is not valid JSON.", where=f"{path}\n{error}", hint="Download or copy it again."
        ) from None
    if not isinstance(config, dict):
        raise SourceError("config.json is not a JSON object.", where=str(path))
    return config


def _download_cache(path: Path) -> tuple[Path, ...]:
    """Return where the files of a snapshot in a huggingface_hub cache really lie; empty for other paths.

    The layout is CACHE/models--ORG--NAME/snapshots/COMMIT/FILE, each file a link into a `blobs` folder.
    """
    directory = (path if path.is_dir() else path.parent).absolute()
    for snapshot in (directory, *directory.parents):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
            return (repository / "blobs", repository.parent / "blobs")
    return ()
