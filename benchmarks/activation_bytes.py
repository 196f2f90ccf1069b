"""Measure how many bytes of activations a training forward keeps: stored, checkpointed and reversible.

    python -m benchmarks.activation_bytes

takes a few minutes on two CPU cores and 8 GB, needs no network, and writes activation_bytes.json and
activation_bytes.png into benchmarks/results. Weights are random: they change no size.

Three ways to train the same network are compared. *stored* is the plain network. *checkpoint* is the plain
network with `torch.utils.checkpoint` around every block that revsurgeon found. *reversible* is the network
that `revsurgeon.rewire` makes, with float or with exact arithmetic; the latter keeps side buffers whose size
depends on beta.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import revsurgeon as rs
from benchmarks.activation_figure import draw
from benchmarks.circumstances import circumstances
from benchmarks.saved_bytes import count_kept
from revsurgeon.sources import resolve

RESULTS = Path(__file__).parent / "results"
NETWORKS = (
    "timm:vit_small_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:convnext_tiny",
    "timm:resnet50",
    "torchvision:swin3d_t",
)
DEPTH_NETWORK = "vit_small_patch16_224"
DEPTHS = (6, 12, 24)


@dataclass(frozen=True)
class Strategy:
    """A way to backpropagate: its name, and for a reversible one coefficients and arithmetic."""

    name: str
    alpha: float | None = None
    beta: float | None = None
    arithmetic: str | None = None


STRATEGIES = (
    Strategy("stored"),
    Strategy("checkpoint"),
    Strategy("reversible, re2", 0.0, 1.0, "float"),
    Strategy("reversible, float, beta 0.7", 0.3, 0.7, "float"),
    Strategy("reversible, exact, beta 0.5", 0.5, 0.5, "exact"),
    Strategy("reversible, exact, beta 0.1", 0.9, 0.1, "exact"),
)


def measure(network: nn.Module, inputs: Any) -> dict[str, Any]:
    """Count what one training forward keeps, for every strategy.

    Args:
        network: a plain network on the CPU; it is rewired on the way.
        inputs: a tuple or a dict of tensors.

    Returns:
        Chains, and for every strategy bytes of the whole network and inside its chains; as JSON takes it.
    """
    anatomy = rs.inspect(network, inputs)
    ends = [(chain.blocks[0].path, chain.blocks[-1].path) for chain in anatomy.chains]
    blocks = list(dict.fromkeys(block.path for chain in anatomy.chains for block in chain.blocks))
    network.train()
    rows = [{"strategy": "stored", **asdict(count_kept(network, inputs, ends))}]
    with checkpointing(network, blocks):
        rows.append({"strategy": "checkpoint", **asdict(count_kept(network, inputs, ends))})
    rs.rewire(network, example_inputs=inputs, arithmetic="exact")
    for strategy in STRATEGIES[2:]:
        prepare(network, strategy)
        rows.append({"strategy": strategy.name, **asdict(count_kept(network, inputs, ends))})
    return {
        "input": [list(t.shape) for t in (inputs.values() if isinstance(inputs, dict) else inputs)],
        "parameters": anatomy.parameters,
        "chains": [
            {"name": c.name, "segments": len(c.segments), "stream": list(c.segments[0].shape)}
            for c in anatomy.chains
        ],
        "bytes": rows,
    }


def prepare(network: nn.Module, strategy: Strategy) -> None:
    """Put a rewired network where a reversible strategy wants it.

    Chains are merged by the rule that keeps more: with `last` the output may share the memory of a stream.
    """
    rs.set_coefficients(network, strategy.alpha, strategy.beta)
    for chain in rs.chains(network):
        chain.merge = "normalized"
        chain.arithmetic = str(strategy.arithmetic)


@contextmanager
def checkpointing(network: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
    """Run every block of a plain network under `torch.utils.checkpoint`."""
    modules = [network.get_submodule(path) for path in blocks]
    for block in modules:
        block.__dict__["forward"] = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in modules:
            del block.__dict__["forward"]


def vit_of_depth(depth: int, **settings: Any) -> nn.Module:
    """A plain vision transformer with so many blocks, and so twice as many residual modules."""
    import timm

    torch.manual_seed(0)
    return timm.create_model(DEPTH_NETWORK, depth=depth, **settings)


def run(networks: Sequence[str], depths: Sequence[int], batch: int) -> dict[str, Any]:
    """Measure everything; the document that is written."""
    document: dict[str, Any] = {**circumstances(), "batch": batch, "networks": [], "depths": []}
    for name in networks:
        print(name, file=sys.stderr, flush=True)
        source = resolve(name, random_weights=True)
        found = measure(source.module(), source.inputs.example(batch_size=batch))
        document["networks"].append({"network": name, **found})
    for depth in depths:
        print(f"{DEPTH_NETWORK}, depth {depth}", file=sys.stderr, flush=True)
        found = measure(vit_of_depth(depth), (torch.randn(batch, 3, 224, 224),))
        document["depths"].append({"network": DEPTH_NETWORK, "depth": depth, **found})
    return document


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.activation_bytes")
    parser.add_argument("--network", action="append", help="a source, as revsurgeon convert takes it")
    parser.add_argument("--depth", action="append", type=int, help=f"depths of {DEPTH_NETWORK}; 0 for none")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory for JSON and figure")
    chosen = parser.parse_args(arguments)
    document = run(chosen.network or NETWORKS, [d for d in chosen.depth or DEPTHS if d], chosen.batch)
    chosen.output.mkdir(parents=True, exist_ok=True)
    target = chosen.output / "activation_bytes.json"
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(document, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
