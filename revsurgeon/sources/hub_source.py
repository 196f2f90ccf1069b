"""Repositories on the Hub: fetched into the Hub's own cache, then read as a local directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revsurgeon.errors import HubError, SourceError
from revsurgeon.sources.directory_source import CONFIG, Checkpoint
from revsurgeon.sources.hub_errors import hub_errors
from revsurgeon.sources.reference import Reference
from revsurgeon.sources.weights import SAFETENSORS, SAFETENSORS_INDEX, WeightFiles, find_weights, shard_names

_ABSENT = object()
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Repository:
    """One repository at one revision.

    Attributes:
        repo_id, revision: as asked for; revision None is the default branch.
        token: None takes the one that the user is logged in with.
        cache_dir: None takes the Hub's own default.
    """

    repo_id: str
    revision: str | None
    token: str | bool | None = None
    cache_dir: str | Path | None = None

    def fetch(self, name: str) -> Path | None:
        """Return the path of a file, downloaded unless it is cached; None if there is no such file.

        Raises:
            HubError: it was not delivered.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HTTPError,
            LocalEntryNotFoundError,
            RemoteEntryNotFoundError,
        )

        with hub_errors(self.repo_id, self.revision, self.token, name):
            try:
                path = hf_hub_download(
                    self.repo_id, name, revision=self.revision, token=self.token, cache_dir=self.cache_dir
                )
            except RemoteEntryNotFoundError:
                return None
            except LocalEntryNotFoundError:
                if self._cached(name) is _ABSENT:
                    return None
                raise
            except HTTPError as error:
                # The client turns to its cache where it finds no connection, but not where one breaks.
                path = self._cached(name)
                if isinstance(error, HfHubHTTPError) or not isinstance(path, str):
                    raise
        return Path(path)

    def at(self, commit: str) -> Repository:
        """Return the same repository at a commit, so that all its files are of one state."""
        return Repository(self.repo_id, commit, self.token, self.cache_dir)

    def weights(self, directory: Path, names: tuple[str, ...]) -> bool:
        """Fetch the first of these checkpoints that exists, with its shards; return whether one does."""
        for name in names:
            path = self.fetch(name)
            if path is None:
                continue
            if path.suffix == ".json":
                for shard in shard_names(path):
                    if self.fetch(shard) is None:
                        raise SourceError(f"a file of the checkpoint is missing: {shard}", where=self.repo_id)
            return True
        return False

    def _cached(self, name: str) -> Any:
        """Return the path of a file in the cache, or that an earlier run was told there is none, or None."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        found = try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache_dir, revision=self.revision)
        return _ABSENT if found is _CACHED_NO_EXIST else found


def open_hub(
    spec: str,
    reference: Reference,
    *,
    allow_pickle: bool,
    trust_remote_code: bool,
    token: str | bool | None,
    cache_dir: str | Path | None,
) -> Checkpoint:
    """Return the checkpoint of a repository. Its config is fetched now, its weights when they are asked for.

    Raises:
        HubError: no such repository or revision, no access to it, or no connection.
        SourceError: the repository holds no network that can be read.
    """
    asked = Repository(reference.name, reference.revision, token, cache_dir)
    config = asked.fetch(CONFIG)
    if config is None:
        raise SourceError(
            f"{reference.name!r} has no {CONFIG}, so it does not hold a transformers or timm network.",
            hint="Quantized files and adapters are no source; look for the network that they were made from.",
        )
    directory = config.parent  # CACHE/models--ORG--NAME/snapshots/COMMIT
    repository = asked.at(directory.name)
    trusted = (directory.parent.parent / "blobs", directory.parent.parent.parent / "blobs")

    def weights() -> WeightFiles:
        names = (SAFETENSORS, SAFETENSORS_INDEX, *(_PICKLES if allow_pickle else ()))
        if not repository.weights(directory, names):
            raise _no_weights(repository, allow_pickle)
        return find_weights(directory, allow_pickle=allow_pickle, trusted=trusted)

    return Checkpoint(
        spec=spec,
        kind="hub",
        name=reference.name.rpartition("/")[2],
        directory=directory,
        find_weights=weights,
        trusted=trusted,
        repo_id=reference.name,
        revision=reference.revision,
        commit=directory.name,
        code=lambda: _fetch_code(repository, directory),
    )


def _no_weights(repository: Repository, allow_pickle: bool) -> SourceError:
    files = _root_files(repository)
    pickles = [name for name in files if name.endswith((".bin", ".pth", ".pt"))]
    if pickles and not allow_pickle:
        return SourceError(
            f"{repository.repo_id!r} has its weights only as pickles, which are not read unless you say so.",
            where="\n".join(pickles[:10]),
            hint="Add --allow-pickle: tensors are then read, and no code is run.",
        )
    return SourceError(
        f"{repository.repo_id!r} holds no weights that can be read.",
        where="its files: " + ", ".join(files[:20]) if files else None,
        hint=f"Expected {SAFETENSORS}. To take the architecture alone, add --random-weights.",
    )


def _root_files(repository: Repository) -> list[str]:
    """Return the names of the files at the top of a repository; empty where the Hub does not answer."""
    from huggingface_hub import HfApi

    try:
        with hub_errors(repository.repo_id, repository.revision, repository.token, "the list of files"):
            files = HfApi(token=repository.token).list_repo_files(
                repository.repo_id, revision=repository.revision
            )
    except HubError:
        return []
    return sorted(name for name in files if "/" not in name)


def _fetch_code(repository: Repository, directory: Path) -> str:
    """Download the Python files of a repository beside its config; return where transformers finds them."""
    from huggingface_hub import snapshot_download

    with hub_errors(repository.repo_id, repository.revision, repository.token, "the Python code"):
        snapshot_download(
            repository.repo_id,
            revision=repository.revision,
            token=repository.token,
            cache_dir=repository.cache_dir,
            allow_patterns=["*.py"],
        )
    if repository.cache_dir is not None:
        return str(directory)  # a record of it holds on this machine only
    return f"{repository.repo_id}@{repository.revision}"
