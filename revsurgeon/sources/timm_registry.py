"""Where the pretrained weights of timm's own models are, by timm's registry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from revsurgeon.errors import SourceError
from revsurgeon.sources.hub_source import Repository
from revsurgeon.sources.timm_source import Located, locate_files
from revsurgeon.sources.torch_hub import downloaded
from revsurgeon.sources.weights import one_file


@dataclass(frozen=True)
class Pretrained:
    """The pretrained weights of a model that timm knows by name.

    Attributes:
        name: `architecture[.tag]`.
        token, cache_dir: for the Hub; None for its own defaults.
    """

    name: str
    token: str | bool | None = None
    cache_dir: str | Path | None = None

    @cached_property
    def _cfg(self) -> Any:
        import timm

        return timm.get_pretrained_cfg(self.name)

    @property
    def repo_id(self) -> str | None:
        """The Hub repository of the weights; None if they are elsewhere or nowhere."""
        return self._cfg.hf_hub_id.partition("@")[0] if self._cfg.hf_hub_id else None

    def locate(self) -> Located:
        """Return where the weights are; those on the Hub are downloaded now, others when timm loads them.

        Raises:
            HubError: the Hub did not deliver.
            SourceError: timm has no weights for this model.
        """
        cfg = self._cfg
        if cfg.hf_hub_id:
            return self._locate_on_hub(cfg.hf_hub_id, cfg.hf_hub_filename or "pytorch_model.bin")
        if cfg.url:
            # timm keeps some originals in their authors' formats, which each network reads by itself.
            entries = {"url": cfg.url, "custom_load": cfg.custom_load}
            return Located(entries, lambda: downloaded(cfg.url), foreign=bool(cfg.custom_load))
        raise SourceError(f"timm has no pretrained weights for {self.name!r}.", hint="Add --random-weights.")

    def _locate_on_hub(self, hub_id: str, filename: str) -> Located:
        """Download a file in its safetensors form, or as it is; timm reads either as tensors only."""
        repo_id, _, revision = hub_id.partition("@")
        repository = Repository(repo_id, revision or None, self.token, self.cache_dir)
        safe = (
            "model.safetensors"
            if filename == "pytorch_model.bin"
            else f"{filename.rpartition('.')[0]}.safetensors"
        )
        for name in dict.fromkeys([safe, filename]):
            path = repository.fetch(name)
            if path is not None:
                snapshot = path
                for _ in Path(name).parts:
                    snapshot = snapshot.parent
                blobs = (snapshot.parent.parent / "blobs", snapshot.parent.parent.parent / "blobs")
                return locate_files(one_file(path, allow_pickle=True, trusted=blobs), commit=snapshot.name)
        raise SourceError(f"{repo_id!r} does not hold the weights that timm expects: {filename}")
