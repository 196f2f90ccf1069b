"""Artifacts on the Hub: where one lies, fetching it if it is there, and pushing one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from revsurgeon.artifact.names import CARD, CONFIG, INDEX, MANIFEST, WEIGHTS
from revsurgeon.errors import ArtifactError, HubError, SourceError, UsageError
from revsurgeon.sources.reference import parse_reference

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

PATTERNS = [WEIGHTS, "model-*.safetensors", INDEX, MANIFEST, CONFIG, CARD]

Progress = Callable[[str], None]


def artifact_path(
    spec: str | Path,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress = lambda text: None,
) -> Path:
    """The local path of an artifact.

    Args:
        spec: a path, or as a string ``org/name[@revision]`` of a converted network on the Hub. What exists is
            a path.
        token: for the Hub.
        cache_dir: where downloads are kept.
        progress: is told when something is downloaded.

    Raises:
        ArtifactError: there is nothing of that name.
        HubError: the Hub did not deliver.
    """
    path = Path(spec).expanduser()
    if isinstance(spec, Path) or os.path.lexists(path):
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
    from revsurgeon.sources.hub_errors import hub_errors

    progress(f"Fetching {spec} from the Hub")
    with hub_errors(reference.name, reference.revision, token, "the artifact"):
        return _fetched(reference.name, reference.revision, token, cache_dir)


def _fetched(
    repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None
) -> Path:
    """The artifact of a repository in the download cache.

    Where the Hub does not list the files, its client takes the part of them that the cache has for all.
    """
    from huggingface_hub import HfApi, snapshot_download

    from revsurgeon.artifact.read import weight_files

    def fetch() -> Path:
        return Path(
            snapshot_download(
                repo_id, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=PATTERNS
            )
        )

    path = fetch()
    try:
        weight_files(path)
    except ArtifactError:
        HfApi(token=token).repo_info(repo_id, revision=revision)  # says why there was no list
        return fetch()
    return path


def push(
    path: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    progress: Progress = lambda text: None,
) -> str:
    """Upload an artifact to the Hub in one commit, so that `load` takes its id.

    The artifact is read and its hashes are compared before anything is sent. Its model card is uploaded with
    the repository's name in the line that loads it; the file here stays as it is. Other weights that are in
    the repository are removed in the same commit, and all else stays.

    Args:
        path: the artifact's directory.
        repo_id: ``org/name``; made if it does not exist.
        private: of a repository that is made; None takes the account's default.
        revision: the branch, made if it does not exist; None is the main one.
        message: of the commit.
        create_pr: open a pull request instead of committing.
        token: for the Hub; None takes the one that you are logged in with.
        progress: is told what happens next, in words.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ArtifactError: it is no artifact, or a damaged one.
        SourceError: the id is impossible.
        HubError: you may not write there, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    from revsurgeon.artifact import changed_tensors, read_manifest, read_tensors
    from revsurgeon.sources.hub_errors import hub_errors

    directory = Path(path)
    if directory.is_file():
        raise UsageError(
            f"{directory} is a single file.",
            hint="Give the artifact's directory: the Hub wants its model card.",
        )
    progress(f"Checking {path}")
    manifest = read_manifest(directory)
    if changed := changed_tensors(read_tensors(directory, manifest), manifest):
        raise ArtifactError(
            f"{len(changed)} of its tensors are not what its manifest has the hashes of.",
            where=f"{path}: {', '.join(changed[:5])}",
            hint="Convert or save it once more. What is wrong with it: revsurgeon verify PATH",
        )
    added = _added(directory, manifest.files, repo_id)
    api = HfApi(token=token, library_name="revsurgeon")
    progress(f"Uploading to {repo_id}")
    with hub_errors(repo_id, revision, token, "the repository"), _writing(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        commit = api.create_commit(
            repo_id,
            [*added, *_removed(there, {operation.path_in_repo for operation in added})],
            commit_message=message or f"{manifest.recipe.mode} network, converted by revsurgeon",
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.pr_url if create_pr else commit.commit_url)


@contextmanager
def _writing(repo_id: str) -> Iterator[None]:
    """Say what is missing where the Hub does not let this account write."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise HubError(
            f"offline mode is on, so nothing can be uploaded to {repo_id!r}.",
            hint="Unset HF_HUB_OFFLINE, and run the command again.",
        ) from None
    except errors.HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise HubError(
            f"the Hub does not let you write to {repo_id!r}.",
            where=error.server_message,
            hint="Log in with a token that may write there: hf auth login",
        ) from None
    except RuntimeError as error:  # around what went wrong with one file
        if isinstance(error.__cause__, (errors.HTTPError, OSError)):
            raise error.__cause__ from None
        raise


def _added(directory: Path, weights: Sequence[str], repo_id: str) -> list[CommitOperationAdd]:
    """The artifact's own files; a link out of it is refused, because what it leads to would be published."""
    from huggingface_hub import CommitOperationAdd

    from revsurgeon.artifact.read import inside

    found = []
    for name in sorted({*weights, INDEX, MANIFEST, CONFIG, CARD}):
        if (directory / name).exists() or (directory / name).is_symlink():
            file = inside(directory, name)
            content = _card_for(file, repo_id) if name == CARD else file
            found.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content))
    return found


def _removed(there: Iterable[str], added: set[str]) -> list[CommitOperationDelete]:
    """Weights of what was there before, which would not be those of this manifest."""
    from huggingface_hub import CommitOperationDelete

    weights = [name for name in there if any(fnmatch(name, pattern) for pattern in PATTERNS[:3])]
    return [CommitOperationDelete(path_in_repo=name) for name in weights if name not in added]


def _card_for(file: Path, repo_id: str) -> bytes:
    """A model card whose line of loading names the repository."""
    try:
        card = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ArtifactError(f"{file.name} is not UTF-8 text.", where=str(file)) from None
    start = card.find("revsurgeon.load(")
    end = card.find(")", start)
    if start >= 0 and end >= 0:  # else somebody wrote another one
        card = f"{card[:start]}revsurgeon.load({repo_id!r}{card[end:]}"
    return card.encode()
