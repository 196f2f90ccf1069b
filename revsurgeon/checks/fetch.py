"""Where an artifact lies: at a path, or on the Hub, from where its files are fetched first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from revsurgeon.artifact.names import CARD, CONFIG, INDEX, MANIFEST, WEIGHTS
from revsurgeon.errors import ArtifactError, SourceError
from revsurgeon.sources.reference import parse_reference

PATTERNS = [WEIGHTS, "model-*.safetensors", INDEX, MANIFEST, CONFIG, CARD]


def artifact_path(
    spec: str,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Path:
    """The local path of an artifact.

    Args:
        spec: a path, or ``org/name[@revision]`` of a converted network on the Hub. What exists is a path.
        token: for the Hub.
        cache_dir: where downloads are kept.
        progress: is told when something is downloaded.

    Raises:
        ArtifactError: there is nothing of that name.
        HubError: the Hub did not deliver.
    """
    path = Path(spec).expanduser()
    if path.exists() or path.is_symlink():
        return path
    try:
        reference = parse_reference(spec)
    except SourceError:
        reference = None
    if reference is None or reference.kind != "hub":
        raise ArtifactError(
            "There is no such artifact.",
            where=spec,
            hint="Give a converted network's directory or .safetensors file, or its Hub id ORG/NAME.",
        )
    from huggingface_hub import snapshot_download

    from revsurgeon.sources.hub_errors import hub_errors

    progress(f"Fetching {spec} from the Hub")
    with hub_errors(reference.name, reference.revision, token, "the artifact"):
        return Path(
            snapshot_download(
                reference.name,
                revision=reference.revision,
                token=token,
                cache_dir=cache_dir,
                allow_patterns=PATTERNS,
            )
        )
