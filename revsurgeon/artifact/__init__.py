"""The artifact: weights as safetensors with a manifest of what was done, and a model card.

`manifest` is the schema, `header` the file format, `staging` how a directory comes to be all at once,
`write` and `read` the two directions, `card` the README.md. Importing this does not import torch.
"""

from __future__ import annotations

from revsurgeon.artifact.card import model_card
from revsurgeon.artifact.manifest import FORMAT_VERSION, ChainRecord, Manifest, TensorRecord
from revsurgeon.artifact.read import changed_tensors, read_manifest, read_tensors
from revsurgeon.artifact.staging import check_output
from revsurgeon.artifact.write import byte_limit, write_artifact

__all__ = [
    "FORMAT_VERSION",
    "ChainRecord",
    "Manifest",
    "TensorRecord",
    "byte_limit",
    "changed_tensors",
    "check_output",
    "model_card",
    "read_manifest",
    "read_tensors",
    "write_artifact",
]
