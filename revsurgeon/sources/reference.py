"""Reads what a user wrote as a source, without importing any library that could load it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from revsurgeon.errors import SourceError, UsageError

Kind = Literal["hub", "timm", "torchvision", "transformers", "local", "python", "demo"]

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")

_FORMS = (
    "Write ORG/NAME[@REVISION], timm:NAME, torchvision:NAME, transformers:TYPE, a local directory or file, "
    "python:MODULE:FACTORY, or demo."
)
_HUB_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_HUB_ID = re.compile(rf"(?:{_HUB_PART}/)?{_HUB_PART}")
_REVISION = re.compile(r"[A-Za-z0-9._/-]+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_-]+):(.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Reference:
    """What a source's specification means.

    Attributes:
        kind: where the network comes from.
        name: the Hub id, the library's model name, the path, or `module:factory`.
        revision: branch, tag or commit that was asked for; only for the Hub.
    """

    kind: Kind
    name: str
    revision: str | None = None


def parse_reference(spec: str, revision: str | None = None) -> Reference:
    """Return what `spec` refers to; a path that exists wins over a Hub id of the same spelling.

    Args:
        spec: as on the command line, for example `timm:vit_small_patch16_224`.
        revision: a Hub revision given apart from `spec`.

    Raises:
        SourceError: `spec` is neither a known form nor an existing path.
        UsageError: a revision that does not fit the source or contradicts the one in `spec`.
    """
    reference = _parse(spec.strip())
    if revision is None:
        return reference
    if reference.kind != "hub":
        raise UsageError(
            f"--revision only applies to a Hub repository, and {spec!r} is not one.",
            hint="Leave --revision out.",
        )
    if reference.revision not in (None, revision):
        raise UsageError(
            f"two revisions were asked for: @{reference.revision} and --revision {revision}.",
            hint="Give one of them.",
        )
    return Reference("hub", reference.name, _checked_revision(revision))


def _parse(spec: str) -> Reference:
    if not spec or "\0" in spec or "\n" in spec:
        raise SourceError("the source is empty or not one line of text.", hint=_FORMS)
    if spec == "demo":
        return Reference("demo", "demo")
    if (scheme := _SCHEME.fullmatch(spec)) and not os.path.exists(spec):
        return _parse_scheme(spec, scheme[1], scheme[2])
    path = os.path.expanduser(spec)
    if os.path.exists(path):  # Path.exists raises over names that are too long
        return Reference("local", str(Path(path)))
    if spec.startswith(("/", "./", "../", "~")) or spec.endswith(WEIGHT_SUFFIXES) or "\\" in spec:
        raise SourceError(
            f"there is no file or directory {spec!r}.", hint="Check the path for a typing error."
        )
    if "/" in spec:
        return _parse_hub(spec)
    raise _not_a_source(spec)


def _parse_scheme(spec: str, scheme: str, name: str) -> Reference:
    if scheme in ("timm", "torchvision", "transformers"):
        if not _NAME.fullmatch(name):
            raise SourceError(
                f"{name!r} is not a name that {scheme} could know.", where=spec, hint=f"Write {scheme}:NAME."
            )
        return Reference(scheme, name)  # type: ignore[arg-type]  # mypy does not narrow to a Literal by `in`
    if scheme in ("hf", "hf-hub"):
        return _parse_hub(name)
    if scheme == "python":
        module, _, factory = name.partition(":")
        if not all(part.isidentifier() for part in [*module.split("."), *factory.split(".")]):
            raise SourceError(
                f"{spec!r} does not name a factory.",
                hint="Write python:package.module:factory, where factory() returns the network.",
            )
        return Reference("python", name)
    raise SourceError(f"{scheme!r} is not a kind of source.", where=spec, hint=_FORMS)


def _parse_hub(text: str) -> Reference:
    name, at, revision = text.partition("@")
    if ".." in name or "--" in name or not _HUB_ID.fullmatch(name) or len(name) > 96:
        raise SourceError(
            f"{name!r} is neither an existing path nor a possible Hub id.",
            hint="A Hub id reads ORG/NAME, with letters, digits, '-', '_' and '.' in each part.",
        )
    return Reference("hub", name, _checked_revision(revision) if at else None)


def _checked_revision(revision: str) -> str:
    if ".." in revision or not _REVISION.fullmatch(revision) or revision.startswith("/"):
        raise SourceError(
            f"{revision!r} is not a possible revision.", hint="A revision is a branch, a tag or a commit."
        )
    return revision


def _not_a_source(word: str) -> SourceError:
    from revsurgeon.sources.suggestions import specs_that_name  # it imports timm and torchvision

    if specs := specs_that_name(word):
        return SourceError(
            f"{word!r} is not a source by itself.", hint="Did you mean " + " or ".join(specs) + "?"
        )
    return SourceError(f"{word!r} is neither an existing path nor the name of a known network.", hint=_FORMS)
