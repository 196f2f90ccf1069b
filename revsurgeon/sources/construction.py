"""Builds networks without filling weights that are about to be replaced, and draws others repeatably."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from revsurgeon.errors import SourceError
from revsurgeon.sources.stand_ins import is_stand_in, real_parameters, stand_ins
from revsurgeon.sources.tensors import aligned, main_dtype

Construct = Callable[[], nn.Module]

MOST_PARAMETERS = 200_000
"""Parameter tensors registered while a network is built, three attempts included; DeepSeek-V3 has 47,000."""

_CANNOT_BUILD = (
    TypeError,
    ValueError,
    AssertionError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    FileNotFoundError,
)
"""What libraries raise over a config that makes no sense."""


class _ThisThread(threading.local):
    """What `load_state_dict` does in this thread; other threads are left alone."""

    load_state_dict: Literal["copies", "takes", "does nothing"] = "copies"
    missing: tuple[str, ...] = ()  # keys that the last load did not find


_this_thread = _ThisThread()


@contextmanager
def seeded() -> Iterator[None]:
    """Draw the same random numbers at every run, and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def building(entry: str) -> Iterator[None]:
    """Raise a SourceError where a library cannot make a network of what its config says."""
    try:
        with _few_parameters(entry):
            yield
    except ImportError as error:
        raise SourceError(
            f"{entry!r} needs a package that is not installed.",
            where=str(error).strip(),
            hint="Install that package.",
        ) from error
    except torch.OutOfMemoryError:
        raise
    except _CANNOT_BUILD as error:
        memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        problem = "is too large for the memory here" if memory else "cannot be built from its config"
        raise SourceError(
            f"{entry!r} {problem}.",
            where=f"{type(error).__name__}: {error}"[:2000],
            hint="Check config.json, or take a network whose config is complete.",
        ) from error


@contextmanager
def _few_parameters(entry: str) -> Iterator[None]:
    """Stop a constructor that would go on for hours: a config may ask for any number of layers."""
    thread, count = threading.get_ident(), 0

    def registered(*_: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > MOST_PARAMETERS:
            raise SourceError(
                f"{entry!r} would have more than {MOST_PARAMETERS:,} parameter tensors.",
                hint="Check the numbers of layers in config.json.",
            )

    handle = torch_module.register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


def on_meta(construct: Construct) -> nn.Module:
    """Return what `construct` makes, wholly on the meta device.

    A few constructors compute with the values of tensors (sizes found by a forward, `.item()`), which the
    meta device has not; those run with stand-ins for their parameters.
    """
    try:
        with seeded(), torch.device("meta"):
            return construct().to("meta")  # .to: what a constructor put on the CPU by name
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return with_empty_weights(construct).to("meta")


def without_weights(construct: Construct) -> nn.Module:
    """Return what `construct` makes, with stand-ins for its parameters and every buffer real and right.

    Non-persistent buffers are in no checkpoint, so they must be computed as the constructor does it.
    """
    try:
        with seeded(), stand_ins():
            return construct()
    except (RuntimeError, NotImplementedError):  # it writes to its parameters in a way that is not skipped
        with seeded():
            return construct()


def with_empty_weights(construct: Construct) -> nn.Module:
    """Return what `construct` makes on the CPU, its parameters allocated but not filled."""
    module = without_weights(construct)
    for parameter in module.parameters():
        if is_stand_in(parameter):
            parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype)
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
    absent = [
        name
        for name, tensor in module.named_parameters()
        if is_stand_in(tensor) or name in _this_thread.missing
    ]
    if absent:
        with seeded():
            initialised = dict(construct().named_parameters())
        for name in absent:
            owner, _, attribute = name.rpartition(".")
            module.get_submodule(owner)._parameters[attribute] = initialised[name]
    return module, absent


def take_weights(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a complete state dict by taking its tensors, not copying them; tied parameters stay tied.

    Raises:
        RuntimeError: a name or a shape that does not fit (torch's own message).
    """
    _take(nn.Module.load_state_dict, module, tensors, strict=True)


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
    _this_thread.missing = ()
    try:
        yield
    finally:
        _this_thread.load_state_dict = "copies"
        setattr(nn.Module, "load_state_dict", copying)  # noqa: B010


def _take(load_state_dict: Callable[..., Any], module: nn.Module, state_dict: Any, strict: bool) -> Any:
    """Load by assignment; tied parameters stay tied, and buffers that no file holds follow the dtype."""
    ties = _tied_names(module)
    built = main_dtype(dict(module.named_parameters()))
    tensors = OrderedDict(
        (name, aligned(value) if isinstance(value, torch.Tensor) else value)
        for name, value in state_dict.items()
    )
    if hasattr(state_dict, "_metadata"):  # the versions of the modules that were saved
        setattr(tensors, "_metadata", state_dict._metadata)  # noqa: B010
    with real_parameters():
        result = load_state_dict(module, tensors, strict=strict, assign=True)
    _this_thread.missing = tuple(result.missing_keys)
    for first, *others in ties:
        parameter = module.get_parameter(first)
        for name in others:
            owner, _, attribute = name.rpartition(".")
            module.get_submodule(owner)._parameters[attribute] = parameter
    taken = main_dtype(dict(module.named_parameters()))
    if built is not None and taken is not None and taken != built:
        _cast_unsaved_buffers(module, getattr(torch, built), getattr(torch, taken))
    return result


def _cast_unsaved_buffers(module: nn.Module, built: torch.dtype, taken: torch.dtype) -> None:
    """Do for buffers outside the state dict what `Module.to(dtype)` would; a network may compute with both.

    Those that the constructor made in another dtype than the weights keep it.
    """
    for owner in module.modules():
        for name in owner._non_persistent_buffers_set:
            buffer = owner._buffers[name]
            if buffer is not None and buffer.dtype == built:
                owner._buffers[name] = buffer.to(taken)


def _tied_names(module: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [group for group in names.values() if len(group) > 1]
