"""Files that torchvision and timm fetch through torch.hub: where they lie, and what can go wrong."""

from __future__ import annotations

import os
import pickle
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from revsurgeon.errors import HubError, SourceError
from revsurgeon.sources.provenance import sha256


def downloaded(url: str, directory: str | None = None) -> dict[str, str]:
    """Return name and sha256 of the file that torch.hub made of this address; empty if it is elsewhere."""
    import torch

    file = Path(directory or f"{torch.hub.get_dir()}/checkpoints") / url.rpartition("/")[2]
    return {file.name: sha256(file)} if file.is_file() else {}


@contextmanager
def download_errors(url: str) -> Iterator[None]:
    """Raise a HubError where a download fails, a SourceError where it delivers something else."""
    hint = "Check the network and try again, or add --random-weights to take the architecture alone."
    try:
        yield
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise HubError(
            "the pretrained weights cannot be downloaded.", where=f"{url}\n{reason}", hint=hint
        ) from None
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise SourceError(
            "the downloaded weights hold more than tensors.", where=f"{url}\n{reason}"
        ) from None
    except RuntimeError as error:
        if "invalid hash value" not in str(error):
            raise
        raise HubError(
            "the downloaded weights are damaged: their hash is wrong.", where=url, hint=hint
        ) from None


@contextmanager
def tensors_only() -> Iterator[None]:
    """Have torch.load read tensors only, also where its caller does not ask for it."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
