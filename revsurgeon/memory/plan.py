"""What `revsurgeon.estimate_memory` returns: every way to train, with its memory by category."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One way to train, at one size.

    Attributes:
        strategy: "stored", "checkpoint", "float", "exact", "chunked" or "re2".
        title: for people.
        lora_rank: of the adapters, where only these are trained.
        peak: most bytes alive at one time.
        parts: bytes at that moment: parameters, gradients, optimizer, inputs, activations, temporaries.
        phase: when that is: "forward", "backward" or "optimizer".
        module: path of the module at work then.
        kept: bytes of activations alive between forward and backward.
        floors: activations and temporaries at the peak as a multiple of the floor; see `MemoryPlan.floor`.
        time_ratio: predicted time of a step, relative to stored activations.
    """

    strategy: str
    title: str
    lora_rank: int | None
    peak: int
    parts: Mapping[str, int]
    phase: str
    module: str
    kept: int
    floors: float
    time_ratio: float


@dataclass(frozen=True)
class Fit:
    """The largest size of one way that fits.

    Attributes:
        strategy, title, lora_rank: as in `Row`.
        largest: the largest value that fits; None if not even the smallest does.
        peak: bytes at it; at the smallest where nothing fits.
        next: the value above it that was simulated, or None where the search ended at its upper end.
        peak_of_next: bytes at that value, more than the limit.
        time_ratio: predicted time for a sample, relative to stored activations at the same size.
    """

    strategy: str
    title: str
    lora_rank: int | None
    largest: int | None
    peak: int
    next: int | None
    peak_of_next: int | None
    time_ratio: float


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one training step, for every way to train.

    Attributes:
        name: of the network.
        device: type of device that is planned for.
        settings: batch, amp, optimizer and so on.
        inputs: shape of every input, by name.
        point: (alpha, beta) of the reversible ways but re2.
        blocks: paths of the blocks that are checkpointed.
        floor: bytes below which no reversible chain gets: its two streams and their two gradients, with the
            two streams that every chain before it keeps.
        rows: one for each way.
        limit: bytes of the device; None where nothing was searched for.
        vary: "batch", "frames" or "image-size".
        fits: the largest sizes, in the order of the rows.
        recommendation: one sentence.
        notes: what the figures leave out.
    """

    name: str
    device: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, tuple[int, ...]]
    point: tuple[float, float]
    blocks: tuple[str, ...]
    floor: int
    rows: tuple[Row, ...]
    limit: int | None = None
    vary: str | None = None
    fits: tuple[Fit, ...] = ()
    recommendation: str = ""
    notes: tuple[str, ...] = field(default=())

    def row(self, strategy: str, lora_rank: int | None = None) -> Row:
        """The row of a way to train.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.strategy, row.lora_rank) == (strategy, lora_rank):
                return row
        raise KeyError(strategy)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it; sizes in bytes."""
        return {
            **asdict(self),
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "point": list(self.point),
            "blocks": list(self.blocks),
            "rows": [asdict(row) for row in self.rows],
            "fits": [asdict(fit) for fit in self.fits],
            "notes": list(self.notes),
        }

    def plot(self, path: str | Path) -> Path:
        """Draw stacked bars into a .png, .svg or .pdf file.

        Raises:
            UsageError: another kind of file.
        """
        from revsurgeon.memory.plot import draw

        return draw(self, Path(path))
