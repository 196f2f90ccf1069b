"""Nested lists, tuples and dictionaries among the arguments of traced calls."""

from __future__ import annotations

from typing import Any

from torch import fx


def plain(value: Any) -> Any:
    """torch.fx's immutable lists and dictionaries as plain ones, which called code may write into."""
    if isinstance(value, (list, tuple)) and type(value) in (
        tuple,
        list,
        fx.immutable_collections.immutable_list,
    ):
        made = [plain(part) for part in value]
        return tuple(made) if isinstance(value, tuple) else made
    if type(value) in (dict, fx.immutable_collections.immutable_dict):
        return {name: plain(part) for name, part in value.items()}
    return value


def structure_of(value: Any) -> Any:
    """The identities of what is in nested lists and dictionaries."""
    if type(value) in (list, tuple):
        return [structure_of(part) for part in value]
    if type(value) is dict:
        return {name: structure_of(part) for name, part in value.items()}
    return id(value)
