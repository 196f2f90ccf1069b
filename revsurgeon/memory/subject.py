"""What is planned for: a rewired network without weights, at any size, from whatever names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revsurgeon.anatomy.probe import ExampleInputs, as_arguments, probe
from revsurgeon.artifact import read_manifest
from revsurgeon.checkpoints import load, set_as_recorded, spec_of
from revsurgeon.errormap.subject import is_artifact
from revsurgeon.errors import UnsupportedModelError, UsageError
from revsurgeon.memory.allocator import too_large
from revsurgeon.memory.sizes import Sizes, present, rebuilt, resized
from revsurgeon.memory.skeleton import skeleton, without_values
from revsurgeon.origin import origin_of
from revsurgeon.recipes import Recipe, load_recipe
from revsurgeon.reversible.coefficients import chains
from revsurgeon.rewiring import rewire_with_checks
from revsurgeon.rewiring.measure import Arguments
from revsurgeon.rewiring.rewire import attach
from revsurgeon.rewiring.unrewired import unrewired
from revsurgeon.sources import build_architecture, resolve
from revsurgeon.sources.inputs import InputSpec


@dataclass
class Subject:
    """A network that can be had at several sizes.

    Attributes:
        name: short.
        spec: its inputs.
        build: how it is constructed for other sizes; None for a network that is given.
        make: the network as it is, on the meta device.
        make_for: one that is built from another `build`.
        make_real: with weights; None for a network that is given.
        real_for: one with weights, drawn at random, that is built from another `build`.
        rewire: rewires what was made.
    """

    name: str
    spec: InputSpec
    build: Any
    make: Callable[[], nn.Module]
    make_for: Callable[[Any], nn.Module]
    make_real: Callable[[], nn.Module] | None
    real_for: Callable[[Any], nn.Module] | None
    rewire: Callable[[nn.Module, ExampleInputs], None]

    def at(self, sizes: Sizes) -> tuple[nn.Module, Arguments]:
        """The rewired network for these sizes, and arguments on the meta device.

        Raises:
            UsageError: the network does not take them.
            UnsupportedModelError: nothing in it can be rewired.
        """
        network, inputs = self._running(sizes)
        if not chains(network):
            self.rewire(network, inputs)
        return network, self.arguments(sizes)

    def real_at(self, sizes: Sizes) -> tuple[nn.Module, Arguments]:
        """The rewired network with weights for these sizes, and arguments, on the CPU.

        Raises:
            UsageError: the network does not take them.
            UnsupportedModelError: nothing in it can be rewired.
        """
        assert self.make_real is not None
        spec = resized(self.spec, sizes)
        example = spec.example(sizes.batch or present(spec, "batch"))
        ways = [] if sizes.depth else [self.make_real]
        wanted = rebuilt(self.build, sizes)
        if self.real_for is not None and wanted != self.build:
            build = self.real_for
            ways.append(lambda: build(wanted))
        network, inputs = self._first(ways, example)
        if not chains(network):
            self.rewire(network, inputs)
        return network, as_arguments(inputs)

    def arguments(self, sizes: Sizes) -> Arguments:
        """Arguments of the forward, on the meta device."""
        spec = resized(self.spec, sizes)
        return as_arguments(spec.example(sizes.batch or present(spec, "batch"), device="meta"))

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Shape of every input."""
        spec = resized(self.spec, sizes)
        batch = sizes.batch or present(spec, "batch")
        return {name: (batch, *entry.shape[1:]) for name, entry in spec.entries.items()}

    def _running(self, sizes: Sizes) -> tuple[nn.Module, Any]:
        """The network as it is where it takes such inputs, otherwise one built for them; and the inputs."""
        spec = resized(self.spec, sizes)
        batch = sizes.batch or present(spec, "batch")
        makes: list[Callable[[], nn.Module]] = [] if sizes.depth else [self.make]
        if sizes.of_network and self.build is not None:
            wanted = rebuilt(self.build, sizes)
            if wanted != self.build:
                makes.append(lambda: self.make_for(wanted))
        try:
            return self._first(makes, spec.example(batch, device="meta"))
        except UsageError as without:
            # Code that looks at values (`if mask.all()`) gets them: in inputs of two samples, which tell the
            # structure as many would, then in weights too.
            values = spec.example(min(batch, 2))
            try:
                return self._first([partial(_blank, make) for make in makes], values)
            except UsageError:
                if self.make_real is None or sizes.depth:
                    raise without from None
            if (told := too_large(self.make())) is not None:
                raise UsageError(
                    f"{self.name} does not run on these inputs without weights, and they do not fit.",
                    where=f"{without.where}; {told}",
                    hint=without.hint,
                ) from without
            return self._first([self.make_real], values)

    def _first(self, makes: Sequence[Callable[[], nn.Module]], inputs: Any) -> tuple[nn.Module, Any]:
        """The first of some networks that takes these inputs, and the inputs."""
        first: UnsupportedModelError | None = None
        for make in makes:
            try:
                network = make()
                with unrewired(network):  # a chain does not run on the meta device
                    probe(network, inputs)
                return network, inputs
            except UnsupportedModelError as error:
                first = first or error
        if first is None:
            raise UsageError(f"{self.name} cannot be built with another depth.")
        raise UsageError(
            f"{self.name} does not take these inputs.",
            where=first.where,
            hint="Take other sizes (--batch, --frames, --image-size, --input).",
        ) from first


def _blank(make: Callable[[], nn.Module]) -> nn.Module:
    return without_values(make())


def subject_of(
    source_or_model: str | Path | nn.Module,
    *,
    example_inputs: ExampleInputs | None = None,
    inputs: Sequence[str] | None = None,
    recipe: str | Path | Recipe | None = None,
    revision: str | None = None,
    random_weights: bool = True,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    allow_python: bool = False,
) -> Subject:
    """A subject from a network, an artifact or a source; no weights are read before `real_at` is called.

    Raises:
        RevsurgeonError: one of its kinds, by what went wrong.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)

    def rewire(network: nn.Module, example: ExampleInputs) -> None:
        rewire_with_checks(network, example, chosen, check=False)

    if isinstance(source_or_model, nn.Module):
        return _of_model(source_or_model, example_inputs, inputs, rewire)
    if example_inputs is not None:
        raise UsageError("example inputs belong to a network; for a file or a source give inputs.")
    if is_artifact(source_or_model):
        if recipe is not None:
            raise UsageError(f"a recipe was given, but {source_or_model} is rewired already.")
        return _of_artifact(
            Path(source_or_model), inputs, allow_python=allow_python, trust_remote_code=trust_remote_code
        )
    found = resolve(
        str(source_or_model),
        revision=revision,
        random_weights=random_weights,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    return Subject(
        found.name,
        found.inputs.override(inputs or ()),
        found.build,
        lambda: found.module("meta"),
        lambda build: build_architecture(
            build, device="meta", allow_python=True, trust_remote_code=trust_remote_code
        ),
        found.module,
        lambda build: with_random_weights(
            build_architecture(build, allow_python=True, trust_remote_code=trust_remote_code)
        ),
        rewire,
    )


def _of_artifact(
    path: Path, inputs: Sequence[str] | None, *, allow_python: bool, trust_remote_code: bool
) -> Subject:
    manifest = read_manifest(path)
    if not manifest.build:
        raise UsageError(
            "the artifact does not say how to build its network.",
            where=str(path),
            hint="Give the network itself: revsurgeon.estimate_memory(network, ...).",
        )
    leave: Any = {"allow_python": allow_python, "trust_remote_code": trust_remote_code}
    config = None if manifest.config is None else manifest.config.encode()

    def rewire(network: nn.Module, example: ExampleInputs) -> None:
        specs = [spec_of(chain) for chain in manifest.chains]
        for chain in attach(network, specs, granularity=manifest.recipe.granularity):
            set_as_recorded(chain, manifest)

    def make() -> nn.Module:
        return build_architecture(dict(manifest.build), config, device="meta", **leave)  # type: ignore[arg-type]

    return Subject(
        path.resolve().name if path.is_dir() else path.stem,
        InputSpec.from_dict(manifest.inputs).override(inputs or ()),
        dict(manifest.build),
        make,
        lambda build: build_architecture(build, device="meta", **leave),
        lambda: load(path, **leave),
        lambda build: with_random_weights(build_architecture(build, **leave)),
        rewire,
    )


def _of_model(
    model: nn.Module,
    example_inputs: ExampleInputs | None,
    inputs: Sequence[str] | None,
    rewire: Callable[[nn.Module, ExampleInputs], None],
) -> Subject:
    origin = origin_of(model)
    spec = InputSpec.from_dict(origin.inputs) if origin and origin.inputs else InputSpec()
    if example_inputs is not None:
        spec = InputSpec.of_examples(example_inputs)
    spec = spec.override(inputs or ())
    if not spec.entries:
        raise UsageError("it is not known how the network is called.", hint="Give example_inputs=.")
    return Subject(
        type(model).__name__,
        spec,
        None,
        lambda: skeleton(model, "meta"),
        lambda build: skeleton(model, "meta"),
        None,
        None,
        rewire,
    )


def with_random_weights(network: nn.Module) -> nn.Module:
    """Fill a network whose parameters are allocated only, as a transformer is usually initialised."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return network
