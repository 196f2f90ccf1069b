"""Builds networks without filling weights that are about to be replaced, and draws others repeatably."""

from __future__ import annotations

import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules import module as torch_module

Construct = Callable[[], nn.Module]


class _ThisThread(threading.local):
    """What the hooks below do in this thread; other threads that build networks are left alone."""

    parameters_on_meta = False
    load_state_dict: Literal["copies", "takes", "does nothing"] = "copies"


_this_thread = _ThisThread()


@contextmanager
def seeded() -> Iterator[None]:
    """Draw the same random numbers at every run, and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def on_meta(construct: Construct) -> nn.Module:
    """Return what `construct` makes, wholly on the meta device.

    A few constructors compute with the values of tensors (sizes found by a forward, `.item()`), which the
    meta device has not; for those only the parameters are on meta while they run, or at last nothing is.
    """
    try:
        with seeded(), torch.device("meta"), _meta_warnings_silenced():
            return construct().to("meta")  # .to: what a constructor put on the CPU by name
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return without_weights(construct).to("meta")


def without_weights(construct: Construct) -> nn.Module:
    """Return what `construct` makes, with its parameters on meta and every buffer real and right.

    Non-persistent buffers are in no checkpoint, so they must be computed as the constructor does it.
    """
    try:
        with seeded(), _parameters_on_meta(), _meta_warnings_silenced():
            return construct()
    except (RuntimeError, NotImplementedError):  # it runs a forward in its constructor
        with seeded():
            return construct()


def with_empty_weights(construct: Construct) -> nn.Module:
    """Return what `construct` makes on the CPU, its parameters allocated but not filled."""
    module = without_weights(construct)
    allocated: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in allocated:
                    empty = torch.empty_like(parameter, device="cpu")
                    allocated[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                owner._parameters[name] = allocated[id(parameter)]
    return module


def with_weights(construct_and_load: Construct, construct: Construct) -> tuple[nn.Module, list[str]]:
    """Return a network whose own library loads its checkpoint, holding the checkpoint's tensors and no copy.

    Args:
        construct_and_load: builds the network and calls `load_state_dict` on it, as the library does.
        construct: builds it with random weights; it runs only if some were not in the checkpoint.

    Returns:
        The network, and the names of the parameters that the checkpoint did not have; those were
        initialised as the library does, repeatably.
    """
    with _load_state_dict("takes"):
        module = without_weights(construct_and_load)
    absent = [name for name, tensor in module.named_parameters() if tensor.is_meta]
    if absent:
        with seeded():
            initialised = dict(construct().named_parameters())
        for name in absent:
            owner, _, attribute = name.rpartition(".")
            module.get_submodule(owner)._parameters[attribute] = initialised[name]
    return module, absent


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Put every parameter on meta at the moment a module registers it.

    Buffers stay real. A parameter that is registered twice (tied weights) stays one parameter.
    """
    handle = torch_module.register_module_parameter_registration_hook(_to_meta)
    _this_thread.parameters_on_meta = True
    try:
        yield
    finally:
        _this_thread.parameters_on_meta = False
        handle.remove()


def _to_meta(_: nn.Module, __: str, parameter: Any) -> Any:
    # Lazy and quantized parameters are classes of their own, with other constructors.
    if not _this_thread.parameters_on_meta or type(parameter) is not nn.Parameter or parameter.is_meta:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)


def without_loading(construct_and_load: Construct) -> nn.Module:
    """Return what `construct_and_load` makes, without the loading."""
    with _load_state_dict("does nothing"):
        return construct_and_load()


@contextmanager
def _load_state_dict(behaviour: Literal["takes", "does nothing"]) -> Iterator[None]:
    """Let every `load_state_dict` of this thread take the given tensors, or do nothing.

    The libraries call it without `assign=True`, which would hold the weights twice and change their dtype.
    """
    copying = nn.Module.load_state_dict

    def replacement(self: nn.Module, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        if _this_thread.load_state_dict == "takes":
            return _take(copying, self, state_dict, strict)
        if _this_thread.load_state_dict == "does nothing":
            return None
        return copying(self, state_dict, strict=strict, assign=assign)

    setattr(nn.Module, "load_state_dict", replacement)  # noqa: B010  # mypy refuses assignment to a method
    _this_thread.load_state_dict = behaviour
    try:
        yield
    finally:
        _this_thread.load_state_dict = "copies"
        setattr(nn.Module, "load_state_dict", copying)  # noqa: B010


def _take(load_state_dict: Callable[..., Any], module: nn.Module, state_dict: Any, strict: bool) -> Any:
    """Load by assignment; tied parameters stay tied and the new parameters stay where they are."""
    ties = _tied_names(module)
    on_meta, _this_thread.parameters_on_meta = _this_thread.parameters_on_meta, False
    try:
        result = load_state_dict(module, state_dict, strict=strict, assign=True)
    finally:
        _this_thread.parameters_on_meta = on_meta
    for first, *others in ties:
        parameter = module.get_parameter(first)
        for name in others:
            owner, _, attribute = name.rpartition(".")
            module.get_submodule(owner)._parameters[attribute] = parameter
    return result


def _tied_names(module: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [group for group in names.values() if len(group) > 1]


@contextmanager
def _meta_warnings_silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*meta.*", category=UserWarning)
        yield


def take_weights(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a complete state dict by taking its tensors, not copying them; tied parameters stay tied.

    Raises:
        RuntimeError: a name or a shape that does not fit (torch's own message).
    """
    _take(nn.Module.load_state_dict, module, tensors, strict=True)
