"""What inspection found: chains of blocks cut into segments, and a reason for everything left alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Why something was left alone."""

    NO_RESIDUAL = "no-residual"
    """Nothing is added to its input."""
    NO_IDENTITY = "no-identity-skip"
    """Something is added to the branch, but not the input itself (a projection, say)."""
    CONCATENATION = "concatenation"
    """Branches are joined by concatenation."""
    SHAPE_CHANGES = "shape-changes"
    """The output has another shape than the input, as in downsampling."""
    SIDE_OUTPUT = "side-output"
    """A second value, which several residual modules take part in, leaves the block."""
    SIDE_EFFECT = "side-effect"
    """Something with an effect would be lost, repeated or reordered."""
    MUTATES = "changes-arguments"
    """An argument is changed in place."""
    UNTRACEABLE = "untraceable"
    """The Python code cannot be followed on example values."""
    MODES_DIFFER = "modes-differ"
    """The structure in training mode is not the one in evaluation mode."""
    OPAQUE_ARGUMENT = "opaque-argument"
    """An argument is an object that may change while the block runs (a cache, say)."""
    CALLED_TWICE = "called-twice"
    """The same module runs at two places of different chains."""
    NOT_CALLED = "not-called"
    """The example inputs do not reach it."""
    EXCLUDED = "excluded"
    """The recipe's include and exclude patterns leave it out."""


@dataclass(frozen=True)
class Segment:
    """One residual module ``G(x; alpha) = post(F(x) + alpha * x)``.

    Attributes:
        block: path of its block.
        index: its place in the block.
        branch: paths of the submodules that it calls.
        skip: "identity" or "scaled".
        parameters: number of parameter elements that it uses.
        shape: of the stream on the example inputs.
        code: its function, as Python source.
    """

    block: str
    index: int
    branch: tuple[str, ...]
    skip: str
    parameters: int
    shape: tuple[int, ...]
    code: str = field(repr=False)


@dataclass(frozen=True)
class Block:
    """A block of a chain.

    Attributes:
        path: of the module.
        stream: the forward's parameter that takes the stream.
        output: the stream's place among the flattened outputs.
        segments: its residual modules, in order.
    """

    path: str
    stream: str
    output: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Chain:
    """A maximal run of shape-preserving segments across consecutive blocks.

    Attributes:
        name: the common prefix of its blocks' paths.
        blocks: in the order of their calls; a shared block appears once for every call.
        copy_output: the network changes the chain's output in place, so it must get a copy.
    """

    name: str
    blocks: tuple[Block, ...]
    copy_output: bool = False

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments, in order."""
        return tuple(segment for block in self.blocks for segment in block.segments)


@dataclass(frozen=True)
class Skipped:
    """A module that was left alone."""

    path: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Anatomy:
    """What inspection found.

    Attributes:
        chains: in the order of their calls.
        skipped: everything that looked like a block and was left alone.
        parameters: number of parameter elements of the network.
        parameters_in_chains: of these, how many the chains' segments use.
    """

    chains: tuple[Chain, ...]
    skipped: tuple[Skipped, ...]
    parameters: int
    parameters_in_chains: int

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments of all chains."""
        return tuple(segment for chain in self.chains for segment in chain.segments)

    @property
    def share(self) -> float:
        """Share of the parameters that is inside chains, from 0 to 1."""
        return self.parameters_in_chains / self.parameters if self.parameters else 0.0

    def to_dict(self, *, code: bool = True) -> dict[str, Any]:
        """Plain data, as JSON takes it, with the code of the segments or without."""
        data = asdict(self)
        data["share"] = self.share
        data["skipped"] = [{**s, "reason": str(s["reason"])} for s in data["skipped"]]
        segments = [s for chain in data["chains"] for block in chain["blocks"] for s in block["segments"]]
        for segment in segments if not code else ():
            del segment["code"]
        return data
