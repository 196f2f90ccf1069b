"""The small task that `revsurgeon demo` finetunes on: printed digits, for a network that knows handwriting.

The digits are drawn here, from a bitmap font, shifted and with noise: a real change of domain that
needs no data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import revsurgeon as rs

# Rows of five pixels, as on old displays: 0 to 9.
_FONT = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00110 01000 10000 11111",
    "01110 10001 00001 00110 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)
_MEAN, _STD = 0.305, 0.376  # what the demo network was trained with; its config.json says so


@dataclass(frozen=True)
class Step:
    """One finetuning step: the loss and the coefficients that it was taken with."""

    number: int
    loss: float
    alpha: float
    beta: float


def printed_digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (count, 1, 8, 8), normalised, and labels (count,), the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    glyphs = torch.zeros(10, 8, 8)
    for digit, rows in enumerate(_FONT):
        pixels = [[float(pixel) for pixel in row] for row in rows.split()]
        glyphs[digit, :7, 1:6] = torch.tensor(pixels)
    labels = torch.randint(10, (count,), generator=generator)
    shifts = torch.randint(-1, 2, (count, 2), generator=generator)
    images = torch.stack(
        [
            glyphs[label].roll((int(down), int(right)), (0, 1))
            for label, (down, right) in zip(labels, shifts, strict=True)
        ]
    )
    noise = 0.2 * torch.rand(images.shape, generator=generator)
    return ((0.8 * images + noise - _MEAN) / _STD).unsqueeze(1), labels


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: for a network this small a second one costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images (N, 1, 8, 8) that the model puts into their class, in eval mode."""
    was_training = model.training
    model.eval()
    correct = (model(images).argmax(dim=1) == labels).float().mean().item()
    model.train(was_training)
    return correct


def finetune(model: nn.Module, steps: int, *, seed: int = 0) -> Iterator[Step]:
    """Finetune every parameter at the coefficients that the network has; yield each step."""
    images, labels = printed_digits(64 * steps, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    model.train()
    for number, (batch, targets) in enumerate(zip(images.split(64), labels.split(64), strict=True), start=1):
        alpha, beta = rs.get_coefficients(model)
        loss = F.cross_entropy(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield Step(number, loss.item(), alpha, beta)


def bytes_kept_for_backward(model: nn.Module, images: Tensor) -> int:
    """Return how many bytes of activations one forward keeps until its backward; parameters not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(images).sum()
    total = sum(kept.values())
    del loss  # only now: a freed activation's address would be used, and counted, again
    return total
