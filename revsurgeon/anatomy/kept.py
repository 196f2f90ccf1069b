"""What a block's own code keeps on its modules, or in lists that it is handed, which no graph does.

A graph gives the block's output and nothing else. A mask that is kept to be used again is made again at
every run, so nothing is lost by dropping it. A loss term that is collected later, or a count, would be lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.probe import has_hooks
from revsurgeon.anatomy.proxies import CONSTANT_TYPES, ValueProxy

_OWN = frozenset(vars(nn.Module()))
"""Attributes of every module: its tables of parameters, hooks and so on."""

Entries = dict[tuple[Hashable, ...], Any]
"""Values by their place: an attribute's name, and keys and indices in the plain containers that it holds."""


def entries(module: nn.Module) -> Entries:
    """All values that a module holds itself."""
    own = {name: value for name, value in vars(module).items() if name not in _OWN}
    found: Entries = {}
    for name, value in {**own, **module._parameters, **module._buffers}.items():
        found.update(_inside((name,), value))
    return found


def _inside(place: tuple[Hashable, ...], value: Any) -> Iterator[tuple[tuple[Hashable, ...], Any]]:
    if len(place) < 8:  # a container may hold itself
        if type(value) is dict:
            for key, part in value.items():
                yield from _inside((*place, key), part)
            return
        if type(value) in (list, tuple):
            for index, part in enumerate(value):
                yield from _inside((*place, index), part)
            return
        if type(value) is set:
            for part in value:
                yield (*place, id(part)), part
            return
    yield place, value


Kept = list[tuple[str, fx.Node | None]]
"""What traced code keeps, by the attribute's path, with the node whose tensor it is; None for a count."""


def kept_by_code(path: str, module: nn.Module, before: Entries) -> Kept:
    """What code that was followed has put on its module.

    Args:
        path: of the module.
        module: whose code was followed.
        before: its `entries` before that.
    """
    found: Kept = []
    for place, value in _changed(module, before):
        if type(value) is ValueProxy and isinstance(value.value, torch.Tensor):
            found.append((_attribute(path, place), value.node))
        elif type(value) is ValueProxy or isinstance(value, CONSTANT_TYPES):
            found.append((_attribute(path, place), None))
    return found


def all_entries(module: nn.Module) -> dict[str, Entries]:
    """The `entries` of a module and of those inside it, but not where hooks keep what they please."""
    return {path: entries(part) for path, part in module.named_modules() if not has_hooks(part)}


def kept_by_call(node: fx.Node, module: nn.Module, args: Any, kwargs: Any) -> Kept:
    """What a module that is called as one node keeps at every call, a segment's two calls included.

    The first call may have filled caches. This one tells what goes on: a count, or a tensor that later code
    could ask for gradients, and that would have none, since a segment's first call is without them.

    Args:
        node: of the call.
        module: has been called once.
        args: what it was called with; not changed.
        kwargs: likewise.
    """
    before = all_entries(module)
    with torch.enable_grad():
        args, kwargs = pytree.tree_map_only(torch.Tensor, _with_gradient, (args, kwargs))
        module.forward(*args, **kwargs)
    found: Kept = []
    for path, place, value in changed(module, before):
        attribute = _attribute(f"{node.target}.{path}".rstrip("."), place)
        if isinstance(value, torch.Tensor) and value.requires_grad:
            found.append((attribute, node))
        elif isinstance(value, CONSTANT_TYPES):
            found.append((attribute, None))
    return found


def changed(module: nn.Module, before: dict[str, Entries]) -> Iterator[tuple[str, tuple[Hashable, ...], Any]]:
    """Where `all_entries` are others than before: the inner module's path, the place there, the value."""
    for path, old in before.items():
        for place, value in _changed(module.get_submodule(path), old):
            yield path, place, value


def _with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    needs = tensor.is_floating_point() or tensor.is_complex()
    return tensor.detach().requires_grad_(needs).clone()


def _changed(module: nn.Module, before: Entries) -> Iterator[tuple[tuple[Hashable, ...], Any]]:
    for place, value in entries(module).items():
        old = before.get(place)
        same = type(value) is not ValueProxy and isinstance(value, CONSTANT_TYPES) and value == old
        if value is not old and not same:
            yield place, value


def _attribute(path: str, place: tuple[Hashable, ...]) -> str:
    return f"{path}.{place[0]}" if path else str(place[0])
