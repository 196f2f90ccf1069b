"""Sources: from what a user names (Hub, timm, transformers, torchvision, files, a function) to a network.

`resolve` reads the config and tells what a network is and where it comes from; `Source.module` builds it.
A new kind of source is one more file here with a `Loader`, and one line in `resolution.py`.
Importing this package imports no torch, timm or transformers.
"""

from __future__ import annotations

from revsurgeon.sources.architecture import build_architecture
from revsurgeon.sources.inputs import Input, InputSpec
from revsurgeon.sources.reference import Reference, parse_reference
from revsurgeon.sources.resolution import resolve
from revsurgeon.sources.source import Build, Provenance, Source

__all__ = [
    "Build",
    "Input",
    "InputSpec",
    "Provenance",
    "Reference",
    "Source",
    "build_architecture",
    "parse_reference",
    "resolve",
]
