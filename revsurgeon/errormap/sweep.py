"""Measure the points of a map on one network, in this process.

At each point the stored gradients are computed once for each arithmetic, and every measure, chain and block
is taken from that one pair of gradients. The two arithmetics have a reference each, because they are two
networks: exact streams are rounded to a grid, so float gradients are some 1e-6 away from theirs. The
drift comes from the same forward; the pretrained network's output is computed once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.errormap.comparison import Sums
from revsurgeon.errormap.growth import Growth, fit_growth
from revsurgeon.errormap.point import ChainErrors, Errors, Point
from revsurgeon.errors import ChainBrokenError
from revsurgeon.reversible.arithmetic import ExactArithmetic, grid_bits_for
from revsurgeon.reversible.chain import Chain
from revsurgeon.reversible.coefficients import some_chains, stored_activations
from revsurgeon.rewiring.measure import (
    Arguments,
    at_coefficients,
    distance,
    output_tensors,
    outputs_and_gradients,
)
from revsurgeon.rewiring.start import largest_values

_BYTES_OF_A_STREAM = 4
"""An element at an exact chain's end is kept as int32 (int64 where the streams grow beyond what was seen)."""


@dataclass
class Sweep:
    """A network to measure on, and what is the same at all of its points.

    Attributes:
        model: rewired; left as it was found.
        arguments: of its forward.
        arithmetics: "float", "exact" or both.
        elements: of a stream of each chain.
    """

    model: nn.Module
    arguments: Arguments
    arithmetics: Sequence[str]
    elements: list[int]
    _pretrained: list[torch.Tensor] | None = None

    @classmethod
    def of(cls, model: nn.Module, arguments: Arguments, arithmetics: Sequence[str]) -> Sweep:
        """Run the network once, to learn how large its streams are."""
        return cls(model, arguments, arithmetics, _stream_elements(model, arguments))

    @property
    def pretrained(self) -> list[torch.Tensor]:
        """The outputs at (1, 0), computed in the process, and with the threads, that measures."""
        if self._pretrained is None:
            with at_coefficients(self.model, 1.0, 0.0):
                self._pretrained = output_tensors(self.model, self.arguments)
        return self._pretrained

    def measure(self, alpha: float, beta: float) -> Point:
        """Measure one point; float reversal without anchors, so that it is seen where they are needed."""
        with _without_anchors(self.model):
            return self._measure(alpha, beta)

    def exact_fails(self, alpha: float, beta: float) -> str | None:
        """Why the network cannot be reversed exactly (a segment that does not repeat); None if it can."""
        try:
            exact = replace(self, arithmetics=("exact",)).measure(alpha, beta)
        except ChainBrokenError as error:
            return f"{error.what} {error.where or ''}".strip()
        return None if "exact" in exact.errors else "the network overflows there"

    def _measure(self, alpha: float, beta: float) -> Point:
        if beta == 0.0:
            with at_coefficients(self.model, alpha, beta):
                return Point(
                    alpha, beta, distance(output_tensors(self.model, self.arguments), self.pretrained)
                )
        errors = {}
        with at_coefficients(self.model, alpha, beta, arithmetic="float"):
            expected: dict[str, torch.Tensor] = {}
            with largest_values(self.model) as largest, stored_activations(self.model):
                if "float" in self.arithmetics:
                    outputs, expected = outputs_and_gradients(self.model, self.arguments)
                else:
                    outputs = output_tensors(self.model, self.arguments)
            drift = distance(outputs, self.pretrained)
            del outputs
            if expected:
                errors["float"] = self._errors(expected, beta, "float")
        if "exact" in self.arithmetics:
            with self._on_a_grid_for(max(largest.values()), beta) as fits:
                if fits:
                    with at_coefficients(self.model, alpha, beta, arithmetic="exact"):
                        with stored_activations(self.model):
                            _, expected = outputs_and_gradients(self.model, self.arguments)
                        errors["exact"] = self._errors(expected, beta, "exact")
        bits = ExactArithmetic(beta).bits
        return Point(alpha, beta, drift, errors, bits, self._exact_bytes(bits))

    @contextlib.contextmanager
    def _on_a_grid_for(self, largest: float, beta: float) -> Iterator[bool]:
        """Have the chains on a grid that holds the magnitudes of this point, as `convert` would choose it.

        Far from the start the streams may be many times larger. Gives False where no grid holds them: there
        the network itself overflows, or nearly.
        """
        found = some_chains(self.model)
        before = [chain.grid_bits for chain in found]
        bits = min(*before, grid_bits_for(largest))
        try:
            for chain in found:
                chain.grid_bits = bits
            yield largest < ExactArithmetic(beta, bits).largest
        finally:
            for chain, value in zip(found, before, strict=True):
                chain.grid_bits = value

    def _errors(self, expected: Mapping[str, torch.Tensor], beta: float, arithmetic: str) -> Errors:
        """Reverse once, and take all measures from that pair of gradients; each tensor is read once."""
        _, found = outputs_and_gradients(self.model, self.arguments)
        sums = {name: Sums.of(found[name], expected[name]) for name in expected}
        whole = _added_up(sums, None)
        chains = []
        for chain in some_chains(self.model):
            blocks = {path: _added_up(sums, path) for path in chain.blocks}
            total = Sums()
            for block in blocks.values():
                total += block
            growth = _growth(chain, blocks, expected, beta) if arithmetic == "float" else None
            chains.append(ChainErrors(chain.name, total.comparison(), growth))
        return Errors(whole.comparison(), tuple(chains))

    def _exact_bytes(self, bits: int) -> int:
        """Side buffers of b bits an element and segment, and two streams at each chain's end."""
        return sum(
            elements * 2 * _BYTES_OF_A_STREAM + sum(chain.segments) * (-(-elements // 8) * bits)
            for chain, elements in zip(some_chains(self.model), self.elements, strict=True)
        )


def _stream_elements(model: nn.Module, arguments: Arguments) -> list[int]:
    elements: dict[int, int] = {}
    handles = []
    for chain in some_chains(model):
        block = model.get_submodule(chain.blocks[-1])
        place = block.__dict__["forward"].output

        def note(
            module: nn.Module, args: object, output: object, chain: Chain = chain, place: int = place
        ) -> None:
            elements[id(chain)] = pytree.tree_leaves(output)[place].numel()

        handles.append(block.register_forward_hook(note))
    try:
        with at_coefficients(model, 1.0, 0.0):
            output_tensors(model, arguments)
    finally:
        for handle in handles:
            handle.remove()
    return [elements[id(chain)] for chain in some_chains(model)]


@contextlib.contextmanager
def _without_anchors(model: nn.Module) -> Iterator[None]:
    found = some_chains(model)
    before = [chain.anchors for chain in found]
    try:
        for chain in found:
            chain.anchors = 0
        yield
    finally:
        for chain, value in zip(found, before, strict=True):
            chain.anchors = value


def _added_up(sums: Mapping[str, Sums], path: str | None) -> Sums:
    """The sums of all parameters, or of those of one block."""
    total = Sums()
    for name, part in sums.items():
        if path is None or name.startswith(f"{path}."):
            total += part
    return total


def _growth(
    chain: Chain, blocks: Mapping[str, Sums], gradients: Mapping[str, torch.Tensor], beta: float
) -> Growth:
    distances, errors = [], []
    behind = 0
    for path, segments in reversed(list(zip(chain.blocks, chain.segments, strict=True))):
        if blocks[path].count:
            distances.append(behind + (segments + 1) / 2)
            errors.append(blocks[path].comparison().relative)
        behind += segments
    wide = any(g.dtype == torch.float64 for g in gradients.values())
    rounding = torch.finfo(torch.float64 if wide else torch.float32).eps / 2
    return fit_growth(distances, errors, behind, rounding=rounding, beta=beta)
