"""The manifest of a small artifact, which tests of the artifact's files and the fuzzer change."""

from __future__ import annotations

from typing import Any

from revsurgeon.artifact import ChainRecord, Manifest
from revsurgeon.recipes import Coefficients, load_recipe


def small_manifest(**fields: Any) -> Manifest:
    """One chain of two blocks in exact arithmetic.

    Args:
        fields: of the manifest, in place of the usual ones.
    """
    usual: dict[str, Any] = {
        "revsurgeon": "0.1.0",
        "source": {"spec": "org/demo@main", "kind": "hub", "repo_id": "org/demo", "files": {"a.bin": "00ff"}},
        "build": {"library": "timm", "entry": "vit_tiny", "arguments": {"img_size": [32, 32]}},
        "recipe": load_recipe("dr2-balanced"),
        "chains": [
            ChainRecord(
                name="blocks",
                blocks=["blocks.0", "blocks.1"],
                segments=[2, 2],
                streams=["x", "x"],
                outputs=[0, 0],
                merge="normalized",
                copy_output=False,
            )
        ],
        "coefficients": Coefficients(alpha=0.9, beta=0.1),
        "arithmetic": "exact",
    }
    return Manifest(**{**usual, **fields})
