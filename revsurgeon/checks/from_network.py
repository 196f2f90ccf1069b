"""The subject that a rewired network in memory is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from revsurgeon.checks.draw import drawing
from revsurgeon.checks.subject import Options, Subject
from revsurgeon.errors import UsageError
from revsurgeon.origin import origin_of
from revsurgeon.reversible.coefficients import some_chains
from revsurgeon.rewiring.wrappers import unwrapped
from revsurgeon.sources.inputs import InputSpec


def network_subject(
    network: nn.Module,
    options: Options,
    *,
    example_inputs: Any = None,
    inputs: Sequence[str] = (),
    device: torch.device | None = None,
    dtype: str | None = None,
) -> Subject:
    """A network in memory, to be verified where it is; it is left as it was found.

    Args:
        network: rewired; also wrapped in `DistributedDataParallel` or by `torch.compile`.
        options: how to verify.
        example_inputs: to run it on; None takes what the artifact that it was loaded from says.
        inputs: as `--input` takes them.
        device, dtype: None, or where it is and what it is already: a network of the caller's is not moved.

    Raises:
        UnsupportedModelError: it was not rewired.
        UsageError: nothing says what it takes, or it would have to be moved.
    """
    network = unwrapped(network)
    some_chains(network)
    place = next((p.device for p in network.parameters()), torch.device("cpu"))
    if dtype is not None or (device is not None and device.type != place.type):
        raise UsageError(
            "a network in memory is verified where and as it is.",
            hint="Move or cast it yourself (network.to(...)), or verify the artifact.",
        )
    origin = origin_of(network)
    if example_inputs is None:
        recorded = origin.inputs if origin is not None else {}
        spec = (InputSpec.from_dict(recorded) if recorded else InputSpec()).override(inputs)
        if not spec.entries:
            raise UsageError(
                f"nothing says what {type(network).__name__} takes.",
                hint="Pass example inputs: revsurgeon.verify(network, example_inputs=...).",
            )
        example_inputs = spec

    @contextlib.contextmanager
    def make_original(network: nn.Module) -> Iterator[nn.Module]:
        yield network  # its own modules, with the chains taken off while they run as the original

    return Subject(
        name=type(network).__name__,
        make_network=lambda: network,
        make_original=make_original,
        draw=drawing(example_inputs, None, place),
        options=options,
    )
