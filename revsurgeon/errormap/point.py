"""What is known of one point (alpha, beta), as data that JSON takes and gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from revsurgeon.errormap.comparison import Comparison
from revsurgeon.errormap.growth import FINE, Growth

ARITHMETICS = ("float", "exact")


@dataclass(frozen=True)
class ChainErrors:
    """The gradients of one chain's parameters; how their error grows is only told of float arithmetic."""

    name: str
    errors: Comparison
    growth: Growth | None = None


@dataclass(frozen=True)
class Errors:
    """Reversible gradients against stored ones, of the same network in the same arithmetic."""

    whole: Comparison
    chains: tuple[ChainErrors, ...]

    def of(self, chain: str | None = None) -> Comparison:
        """The errors of one chain, or of all parameters."""
        if chain is None:
            return self.whole
        return next(c.errors for c in self.chains if c.name == chain)

    @property
    def anchors_every(self) -> int | None:
        """Segments between two anchors that would make the gradient fine; None if it is fine without.

        The chain that needs the most decides; 0 means that no number of them would do.
        """
        if self.whole.relative <= FINE:
            return None
        needing = [c for c in self.chains if c.errors.relative > FINE] or self.chains
        return min((c.growth.stretch() for c in needing if c.growth is not None), default=None)


@dataclass(frozen=True)
class Point:
    """One point of a map.

    Attributes:
        alpha, beta: the coefficients.
        drift: ``||output - pretrained|| / ||pretrained||`` of the whole network's outputs.
        errors: by arithmetic. Empty at beta = 0, where nothing can be reversed.
        bits: an element and segment that the side buffers of exact arithmetic take; None at beta = 0.
        exact_bytes: that exact chains keep for one backward pass, side buffers and streams at their ends;
            None at beta = 0.
    """

    alpha: float
    beta: float
    drift: float
    errors: Mapping[str, Errors] = field(default_factory=dict)
    bits: int | None = None
    exact_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        data: dict[str, Any] = {"alpha": self.alpha, "beta": self.beta, "drift": self.drift}
        data["exact_memory"] = None if self.bits is None else {"bits": self.bits, "bytes": self.exact_bytes}
        for arithmetic, errors in self.errors.items():
            chains = [
                {"name": c.name, **asdict(c.errors), "growth": None if c.growth is None else asdict(c.growth)}
                for c in errors.chains
            ]
            data[arithmetic] = {**asdict(errors.whole), "chains": chains}
            if arithmetic == "float":
                data[arithmetic]["anchors_every"] = errors.anchors_every
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Point:
        """What `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        errors = {name: _errors(data[name]) for name in ARITHMETICS if name in data}
        memory = data["exact_memory"]
        bits, size = (None, None) if memory is None else (int(memory["bits"]), int(memory["bytes"]))
        return cls(float(data["alpha"]), float(data["beta"]), float(data["drift"]), errors, bits, size)


def _errors(data: Mapping[str, Any]) -> Errors:
    chains = tuple(
        ChainErrors(
            str(c["name"]), _comparison(c), None if c["growth"] is None else Growth(**dict(c["growth"]))
        )
        for c in data["chains"]
    )
    return Errors(_comparison(data), chains)


def _comparison(data: Mapping[str, Any]) -> Comparison:
    cosine = data["cosine"]
    return Comparison(
        float(data["relative"]),
        None if cosine is None else float(cosine),
        float(data["max_abs"]),
        float(data["mean_abs"]),
        float(data["mse"]),
    )
