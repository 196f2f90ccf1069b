"""What a task has to offer so that every arm can be run on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""


@dataclass(frozen=True)
class Settings:
    """What is the same for all arms of a task.

    Attributes:
        steps: of finetuning.
        batch: samples a step.
        learning_rate: the peak of a one-cycle schedule, of AdamW with weight decay .05.
        samples: labelled samples to finetune on.
        pretraining_steps: before it, once a task.
        pretraining_batch: samples a step there.
        pretraining_rate: its learning rate.
        test_samples: so many of the test samples only; None: all.
    """

    steps: int
    batch: int
    learning_rate: float
    samples: int
    pretraining_steps: int
    pretraining_batch: int
    pretraining_rate: float
    test_samples: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


REHEARSAL = Settings(
    steps=2,
    batch=2,
    learning_rate=1e-3,
    samples=20,
    pretraining_steps=2,
    pretraining_batch=2,
    pretraining_rate=1e-3,
    test_samples=8,
)
"""Enough to see that everything runs, for nobody to read a figure from."""


def beside(network: nn.Module, batch: Batch) -> Batch:
    """A batch on the network's device; it is made on the CPU, so that it is the same on all."""
    device = next(network.parameters()).device
    return batch[0].to(device), batch[1].to(device)


class Task(Protocol):
    """A pretrained backbone, and what it is finetuned for.

    Attributes:
        name: as the command line has it.
        text: what it is, for the page.
        metric: what `score` measures.
        backbone: what the names of the backbone's parameters begin with; the others are the head.
        pretrained: what the names of those begin with that finetuning takes from pretraining.
    """

    name: str
    text: str
    metric: str
    backbone: tuple[str, ...]
    pretrained: tuple[str, ...]
    settings: Settings

    def pretraining_network(self) -> nn.Module:
        """The network that is pretrained, with random weights; it has the backbone under the same names."""

    def pretraining_loss(self, network: nn.Module, seed: int) -> Tensor:
        """The loss on a batch that is made from this seed."""

    def network(self) -> nn.Module:
        """The network that is finetuned, with random weights."""

    def batch(self, seed: int, step: int) -> Batch:
        """The labelled batch of one step."""

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """What finetuning makes small."""

    def score(self, network: nn.Module) -> float:
        """How good the network is on the test samples, in per cent."""
