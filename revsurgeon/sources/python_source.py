"""Networks that a user's own Python function makes: `python:package.module:factory`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import SourceError
from revsurgeon.sources.inputs import InputSpec
from revsurgeon.sources.provenance import sha256
from revsurgeon.sources.source import Build, Loaded
from revsurgeon.sources.suggestions import did_you_mean

if TYPE_CHECKING:
    from torch import nn


def build_of_name(name: str) -> Build:
    """Return the build of `module:factory`; nothing is imported yet."""
    return {"library": "python", "entry": name, "arguments": {}}


def construct(build: Build) -> nn.Module:
    """Return the network that the factory makes, drawing the same random numbers at every call.

    Raises:
        SourceError: the factory cannot be found or returns something else.
    """
    return _call(build)[0]


@dataclass
class PythonLoader:
    """Loads what a factory makes. The factory is called once for the example inputs and the first module.

    Attributes:
        build: names the factory.
        made: the network of the first call, until it is handed out.
    """

    build: Build
    made: nn.Module | None = field(default=None, repr=False)

    def inputs(self) -> InputSpec:
        """Return the example inputs that the factory gives; none if it returns a network alone."""
        self.made, examples = _call(self.build)
        parameters = inspect.signature(self.made.forward).parameters.values()
        names = tuple(parameter.name for parameter in parameters)
        if any(
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters
        ):
            names = ()  # any name may do
        return InputSpec({}, names) if examples is None else InputSpec.of_examples(examples, names)

    def architecture(self) -> nn.Module:
        """Return the network on the meta device."""
        from revsurgeon.sources.construction import on_meta

        return on_meta(lambda: construct(self.build))

    def load(self) -> Loaded:
        """Return the network as the factory makes it."""
        module, self.made = self.made, None
        file = _file_of(self.build)
        return Loaded(module or construct(self.build), {file.name: sha256(file)} if file else {})


def _call(build: Build) -> tuple[nn.Module, Any]:
    from torch import nn

    from revsurgeon.sources.construction import seeded

    with _working_directory_importable(), seeded():
        result = _factory(build["entry"])()
    module, examples = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(module, nn.Module):
        raise SourceError(
            f"the factory {build['entry']!r} returned a {type(module).__name__}, not a torch.nn.Module.",
            hint="Return the network, or (network, example_inputs).",
        )
    return module, examples


def _factory(name: str) -> Callable[[], Any]:
    module_name, _, path = name.partition(":")
    module = _import(module_name)
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            public = [key for key in vars(module) if not key.startswith("_")]
            raise SourceError(
                f"the module {module_name!r} has no {path!r}.",
                where=getattr(module, "__file__", None),
                hint=did_you_mean(path, public, f"python:{module_name}:", "Check the name of the function."),
            )
        found = getattr(found, part)
    if not callable(found):
        raise SourceError(f"{name!r} is a {type(found).__name__}, not a function.", hint="Name a function.")
    required = _required_parameters(found)
    if required:
        raise SourceError(
            f"the factory {name!r} needs arguments: {', '.join(required)}.",
            hint="Write a function without arguments that calls it.",
        )
    return found


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there, but something that it imports is not
        raise SourceError(
            f"there is no Python module {name!r}.",
            where=f"looked in {os.getcwd()} and where Python looks",
            hint="Run from the directory that holds the module, or install its package.",
        ) from None


def _required_parameters(factory: Any) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (ValueError, TypeError):  # a builtin without a signature
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (0, 1, 3)  # no default, not *args or **kwargs
    ]


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Let modules of the working directory be imported, as `python -m` does."""
    directory = os.getcwd()
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        if directory in sys.path:
            sys.path.remove(directory)


def _file_of(build: Build) -> Path | None:
    module = sys.modules.get(build["entry"].partition(":")[0])
    file = getattr(module, "__file__", None)
    return Path(file) if file and Path(file).is_file() else None
