"""Run the network once on example inputs and record which call's output is which call's input."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from revsurgeon.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

ExampleInputs = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor, a tuple of positional arguments, or a dict of keyword arguments."""

_CONTAINERS = frozenset({dict, list, set})

Stamp = tuple[int, int]
"""A tensor at one moment: its identity and its version (in-place changes count versions up)."""


@dataclass(eq=False)
class Call:
    """One call of one module, with what went in and what came out.

    The tensors are kept, so that no identity is given out twice while the record lives.
    """

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parent: Call | None
    inputs: dict[Stamp, torch.Tensor]
    output: Any = None
    outputs: dict[Stamp, torch.Tensor] = field(default_factory=dict)
    children: list[Call] = field(default_factory=list)


def as_arguments(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from what the public functions take as example inputs."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leave every module's attributes (training flags, caches, hooks) and buffers as they were found."""
    with attributes_kept(model):
        # Copies take the changes: even on fake tensors a counter such as num_batches_tracked counts on.
        copies: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
        yield


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back every module's attributes, and what is in those that are plain containers: caches, mostly."""
    stores: list[Any] = []
    for module in model.modules():
        stores += [module.__dict__, module._parameters, module._buffers, module._modules]
        for value in module.__dict__.values():
            stores += _containers(value)
    before = [(store, store.copy()) for store in stores]
    try:
        yield
    finally:
        for store, kept in before:
            if _contents(store) != _contents(kept):
                store.clear()
                store.extend(kept) if isinstance(store, list) else store.update(kept)


def _containers(value: Any, depth: int = 8) -> Iterator[Any]:
    """A plain container and those inside it; one may hold itself, so not for ever."""
    if type(value) in _CONTAINERS and depth:
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _containers(part, depth - 1)


def _contents(store: Any) -> list[Any]:
    """What tells whether a container was changed: which objects are in it."""
    if isinstance(store, dict):
        return [(name, id(value)) for name, value in store.items()]
    return [id(value) for value in store]


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than running its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def probe(
    model: nn.Module, example_inputs: ExampleInputs
) -> tuple[Call, contextlib.AbstractContextManager[Any]]:
    """Record one forward in evaluation mode, without memory or weights where that works.

    Args:
        model: left as it was found.
        example_inputs: see `ExampleInputs`.

    Returns:
        The root call, and the mode under which its recorded values can be computed with further.

    Raises:
        UnsupportedModelError: the network does not run on the example inputs.
    """
    args, kwargs = as_arguments(example_inputs)
    on_meta = any(p.is_meta for p in model.parameters())
    if on_meta:
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
        return _recorded(model, args, kwargs), contextlib.nullcontext()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with fake, untouched(model):
            fake_args, fake_kwargs = pytree.tree_map_only(torch.Tensor, fake.from_tensor, (args, kwargs))
            return _recorded(model, fake_args, fake_kwargs), fake
    except UnsupportedModelError as error:
        logger.debug("the network does not run on fake tensors (%s); running it for real", error)
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)), untouched(model):
        return _recorded(model, args, kwargs), contextlib.nullcontext()


def _recorded(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The call tree of one forward."""
    roots: list[Call] = []
    stack: list[Call] = []
    handles = []

    def before(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            parent = stack[-1] if stack else None
            call = Call(path, module, _as_given(args), _as_given(kwargs), parent, stamps((args, kwargs)))
            (stack[-1].children if stack else roots).append(call)
            stack.append(call)

        return hook

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = stack.pop()
        call.output, call.outputs = output, stamps(output)

    training = {module: module.training for module in model.modules()}
    seen: set[int] = set()
    try:
        for path, module in model.named_modules():
            if id(module) not in seen and not isinstance(module, torch.jit.ScriptModule):
                seen.add(id(module))
                handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True, prepend=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
        model.eval()
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # arbitrary user code ran
        raise UnsupportedModelError(
            "the network does not run on the example inputs.",
            where=f"{type(model).__name__}: {type(error).__name__}: {_shorten(str(error))}",
            hint="Give inputs that it takes (on the command line: --input NAME=SHAPE[:DTYPE]).",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    return roots[0]


def _as_given(tree: Any) -> Any:
    """The same objects in other lists and dictionaries: networks write into those that they are given."""
    if type(tree) in (tuple, list):
        return type(tree)(_as_given(part) for part in tree)
    if type(tree) is dict:
        return {name: _as_given(part) for name, part in tree.items()}
    return tree


def stamps(tree: Any) -> dict[Stamp, torch.Tensor]:
    """The tensors of a structure by identity and version, in order."""
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return {stamp(tensor): tensor for tensor in tensors}


def stamp(tensor: torch.Tensor) -> Stamp:
    """Identity and version of a tensor."""
    return id(tensor), tensor._version


def _shorten(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
