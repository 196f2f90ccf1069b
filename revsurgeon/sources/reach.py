"""What a config or a manifest may not ask for while its network is built: other files, downloads, code.

timm's `create_model` also takes `hf-hub:` and `local-dir:` names and a checkpoint to load, and transformers
hands it what a config says. transformers itself fetches attention kernels, which are compiled code, by the
names of their repositories. And a config may ask for any number of layers, which would take hours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from revsurgeon.errors import SourceError

_ARGUMENTS = ("model_args", "backbone_kwargs")  # of timm.create_model
_FILES = ("checkpoint_path", "cache_dir", "pretrained_cfg_overlay")
_NAMES = ("architecture", "backbone")
_DEPTHS = re.compile(r".*(layers?|depths?|blocks)")
_DEEPEST = 2_000  # the deepest network that was published has 1,202 layers
_KERNELS = re.compile("_?(attn|experts)_implementation")


def check_reach(settings: Mapping[str, Any], *, trust_remote_code: bool = False) -> None:
    """Check that a config describes a network and nothing else.

    Args:
        settings: a config.json's content, or the arguments of a build.
        trust_remote_code: code from the Hub may run.

    Raises:
        SourceError: it names files, a network elsewhere, or code.
    """
    for key, value in _entries(settings):
        if key in _ARGUMENTS and isinstance(value, Mapping):
            for name in _FILES:
                if value.get(name):
                    raise _reaches(f"{key}.{name}: {value[name]!r}", "a file on this machine")
        if key in _NAMES and isinstance(value, str) and (":" in value or "/" in value):
            raise _reaches(f"{key}: {value!r}", "a network in another place")
        if isinstance(key, str) and _KERNELS.fullmatch(key) and "/" in str(value) and not trust_remote_code:
            raise SourceError(
                "the config asks for kernels from the Hub, which are code.",
                where=f"{key}: {value!r}"[:200],
                hint="If you trust that code, add --trust-remote-code; or remove the line from the config.",
            )
        if isinstance(key, str) and _DEPTHS.fullmatch(key) and _largest(value) > _DEEPEST:
            raise SourceError(
                f"the config asks for more than {_DEEPEST:,} layers.",
                where=f"{key}: {value!r}"[:200],
                hint="Check that number.",
            )


def _reaches(where: str, what: str) -> SourceError:
    return SourceError(
        f"the config names {what}, which the building of a network does not read.",
        where=where[:200],
        hint="Do not trust it, or remove that entry and name the checkpoint itself as the source.",
    )


def _largest(value: object) -> float:
    numbers = value if isinstance(value, list | tuple) else [value]
    return max((number for number in numbers if isinstance(number, int | float)), default=0)


def _entries(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key and its value, at any depth; without recursion, because a config may be nested deeply."""
    left: list[Any] = [settings]
    while left:
        item = left.pop()
        if isinstance(item, Mapping):
            yield from item.items()
            left += item.values()
        elif isinstance(item, list | tuple):
            left += item
