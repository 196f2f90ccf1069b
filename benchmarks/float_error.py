"""Measure how precise reversible gradients are: the shipped demo network, float against exact arithmetic.

    python -m benchmarks.float_error

takes half a minute, needs no network, and writes float_error.json into benchmarks/results. The network is the
one that `revsurgeon convert demo` converts, the images are 64 of the digits it was not trained on, and the
loss is the cross-entropy. Every error is ``||g_reversible - g_stored|| / ||g_stored||`` over all parameters,
in float32, where both gradients are of the same rewired network in the same arithmetic.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import revsurgeon as rs
from benchmarks.circumstances import circumstances
from benchmarks.digits import load_split
from revsurgeon.sources import resolve

RESULTS = Path(__file__).parent / "results"
POINTS = ((0.0, 1.0), (0.3, 0.7), (0.5, 0.5), (0.7, 0.3), (0.9, 0.1), (1.0, 0.1))
IMAGES = 64


def gradients(network: nn.Module, images: Tensor, labels: Tensor, *, stored: bool) -> list[Tensor]:
    """Gradients of the cross-entropy by all parameters.

    Args:
        network: rewired.
        images: (N, channels, height, width).
        labels: (N,).
        stored: backpropagate conventionally.
    """
    with rs.stored_activations(network) if stored else contextlib.nullcontext():
        loss = F.cross_entropy(network(images), labels)
        return list(torch.autograd.grad(loss, list(network.parameters())))


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """``||actual - expected|| / ||expected||``, all tensors together; exactly 0 only when all are equal."""
    pairs = list(zip(actual, expected, strict=True))
    difference = sum(float((a.double() - e.double()).square().sum()) for a, e in pairs)
    return (difference / sum(float(e.double().square().sum()) for e in expected)) ** 0.5


def measure(granularity: str, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The errors of one way to cut the demo network, as JSON takes it."""
    digits = load_split()
    images, labels = digits.test_images[:IMAGES], digits.test_labels[:IMAGES]
    network = resolve("demo").module()
    recipe = rs.load_recipe(None, "dr2").model_copy(
        update={"granularity": granularity, "arithmetic": "exact"}
    )
    rs.rewire(network, example_inputs=images, recipe=recipe)
    network.train()
    rows = []
    for alpha, beta in points:
        rs.set_coefficients(network, alpha, beta)
        row: dict[str, Any] = {"alpha": alpha, "beta": beta}
        for arithmetic in ("float", "exact"):
            for chain in rs.chains(network):
                chain.arithmetic = arithmetic
            torch.manual_seed(0)
            expected = gradients(network, images, labels, stored=True)
            torch.manual_seed(0)
            row[arithmetic] = relative_error(gradients(network, images, labels, stored=False), expected)
        rows.append(row)
    segments = sum(sum(chain.segments) for chain in rs.chains(network))
    return {"network": "demo", "granularity": granularity, "segments": segments, "errors": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.float_error")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory for the JSON")
    chosen = parser.parse_args(arguments)
    document = {
        **circumstances(),
        "tables": [measure(granularity, POINTS) for granularity in ("segment", "block")],
    }
    chosen.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    (chosen.output / "float_error.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
