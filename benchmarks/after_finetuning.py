"""Measure whether a finetuned network may be put back to (1, 0), that is, whether its plain weights suffice.

    python -m benchmarks.after_finetuning

takes about half an hour on two cores, needs no network, and writes after_finetuning.json into
benchmarks/results; a run that was interrupted goes on where it was. The demo network is finetuned, from its
pretrained weights and in exact arithmetic, to the digits turned by a quarter and with black and white
exchanged, along several paths of the coefficients. Then its accuracy on the test images is taken where the
path ends, and once more with the coefficients set to (1, 0), which is what the unrewired network computes
with the weights that `revsurgeon export --to weights` writes. Training stores its activations, because that
is faster and gives the same bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import revsurgeon as rs
from benchmarks.circumstances import circumstances
from benchmarks.digits import MEAN, STD, load_split
from revsurgeon.sources import resolve

RESULT = Path(__file__).parent / "results" / "after_finetuning.json"
EPOCHS, BATCH_SIZE, LEARNING_RATE = 12, 64, 2e-3

Point = tuple[float, float]

PATHS: dict[str, tuple[Point, Point]] = {
    "conventional": ((1.0, 0.0), (1.0, 0.0)),
    "near (1, 0)": ((0.99, 0.01), (0.99, 0.01)),
    "hold": ((0.9, 0.1), (0.9, 0.1)),
    "balanced": ((0.95, 0.05), (0.3, 0.7)),
    "paper": ((1.0, 0.1), (0.3, 0.7)),
    "re2": ((0.0, 1.0), (0.0, 1.0)),
    "back": ((0.9, 0.1), (0.999, 0.001)),
}
"""Where each path of the coefficients starts and ends; it moves linearly, over the whole training."""


def shifted(images: Tensor) -> Tensor:
    """The images (N, 1, 8, 8) turned by a quarter, with black and white exchanged."""
    black, white = -MEAN / STD, (1 - MEAN) / STD
    return black + white - images.rot90(1, dims=(2, 3))


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of the images that are put into their own class."""
    return float((network.eval()(images).argmax(dim=1) == labels).double().mean())


def finetuned(path: str, seed: int) -> dict[str, float]:
    """Accuracies of one run."""
    digits = load_split()
    train, test = shifted(digits.train_images), shifted(digits.test_images)
    recipe = rs.load_recipe("dr2-hold")
    network = rs.rewire(resolve("demo").module(), example_inputs=digits.train_images[:2], recipe=recipe)
    start, end = PATHS[path]
    steps = EPOCHS * (len(train) // BATCH_SIZE)
    schedule = rs.CoefficientSchedule(network, steps, start=start, end=end)
    before = accuracy(network, test, digits.test_labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    learning_rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    torch.manual_seed(seed)
    with rs.stored_activations(network):
        for _ in range(EPOCHS):
            order = torch.randperm(len(train))
            for batch in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
                loss = F.cross_entropy(network.train()(train[batch]), digits.train_labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                learning_rates.step()
                schedule.step()
    found = {"before": before, "at_the_end": accuracy(network, test, digits.test_labels)}
    rs.set_coefficients(network, 1.0, 0.0)
    return found | {"at_1_0": accuracy(network, test, digits.test_labels)}


def summary(runs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of a path."""
    columns = {name: [run[name] for run in runs.values()] for name in next(iter(runs.values()))}
    columns["lost"] = [end - back for end, back in zip(columns["at_the_end"], columns["at_1_0"], strict=True)]
    return {
        name: {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if values[1:] else 0.0}
        for name, values in columns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    done: dict[str, Any] = {}
    if options.output.exists():
        done = {row["path"]: row["runs"] for row in json.loads(options.output.read_text())["paths"]}
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for path in PATHS:
            runs = done.setdefault(path, {})
            if str(seed) in runs:
                continue
            runs[str(seed)] = finetuned(path, seed)
            print(path, seed, runs[str(seed)], flush=True)
            write(options.output, done)


def write(output: Path, done: dict[str, Any]) -> None:
    """Write all runs so far."""
    rows = [
        {"path": name, "start": PATHS[name][0], "end": PATHS[name][1], "runs": runs, **summary(runs)}
        for name, runs in done.items()
        if runs
    ]
    training = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    document = {**circumstances(), "network": "demo", "training": training, "paths": rows}
    output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
