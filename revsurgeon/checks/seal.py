"""What a verification was of, as a hash: a manifest that was changed since says so by it.

It is no signature. Who changes an artifact on purpose can write a new one, as with the hashes of the tensors.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from revsurgeon.artifact import Manifest

RECORD = "verify"
"""The entry of a manifest's `checks` that a verification leaves."""

NOT_VERIFIED = "not verified"
"""What stands there instead where there was none, perhaps with the reason."""


def seal_of_structure(manifest: Manifest) -> str:
    """The sha256 of everything in a manifest that decides what the network computes, weights aside."""
    fields = {"build", "config", "inputs", "recipe", "chains", "coefficients", "arithmetic", "schedule_state"}
    # Without defaults, so that a field which a later version adds does not change it.
    return _hash(manifest.model_dump(mode="json", include=fields, exclude_defaults=True))


def seal_of_weights(manifest: Manifest) -> str:
    """The sha256 of the names, types, shapes and hashes of all tensors."""
    return _hash({name: record.model_dump(mode="json") for name, record in manifest.tensors.items()})


def _hash(data: object) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
