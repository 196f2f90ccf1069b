"""The bytes that the README states: what they are made of, and that nothing escapes the count."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch

from benchmarks import activation_bytes
from benchmarks.activation_bytes import STRATEGIES, Strategy, checkpointing, prepare
from benchmarks.saved_bytes import Kept, count_kept
from revsurgeon.recipes import load_recipe
from revsurgeon.rewiring import rewire_with_checks
from tests.models import seeded, timm_vit

ENDS = {depth: [("blocks.0", f"blocks.{depth - 1}")] for depth in (3, 6, 12, 24)}
ELEMENTS = 2 * 17 * 32  # of a stream: batch, tokens (16 patches and one for the class), width
FLOAT = Strategy("float", 0.3, 0.7, "float")


def plain_vit(depth: int, **settings: Any) -> tuple[torch.nn.Module, Any]:
    without_randomness = {"drop_rate": 0.0, "drop_path_rate": 0.0}
    network, inputs = seeded(lambda: timm_vit(depth, **{**without_randomness, **settings}))
    return network.train(), inputs


@functools.cache  # tracing the blocks takes most of the time; coefficients and arithmetic may change after it
def rewired_vit(depth: int, dropout: float) -> tuple[torch.nn.Module, Any]:
    network, inputs = plain_vit(depth, proj_drop_rate=dropout)
    rewire_with_checks(network, inputs, load_recipe("re2"), check=False)
    return network, inputs


def kept(depth: int, strategy: Strategy, *, allocator: bool = False, dropout: float = 0.0) -> Kept:
    network, inputs = rewired_vit(depth, dropout)
    prepare(network, strategy)
    return count_kept(network, inputs, ENDS[depth], allocator=allocator)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FLOAT, Strategy("re2", 0.0, 1.0, "float")], ids=lambda s: s.name)
def test_a_float_chain_keeps_two_streams_whatever_its_depth(strategy):
    two_streams = 2 * ELEMENTS * torch.float32.itemsize
    assert [kept(depth, strategy).in_chains for depth in (6, 12, 24)] == [two_streams] * 3


@pytest.mark.parametrize(
    ("beta", "bits"),
    [pytest.param(0.01, 7, marks=pytest.mark.slow), (0.05, 5), (0.1, 4), (0.3, 2), (0.5, 1), (1.0, 0)],
)
def test_an_exact_chain_grows_by_its_bits_an_element_and_segment(beta, bits):
    strategy = Strategy("exact", 1 - beta, beta, "exact")
    two_streams = 2 * ELEMENTS * torch.int32.itemsize  # on this grid the integers fit
    sizes = [kept(depth, strategy).in_chains for depth in (6, 12, 24)]
    segments = [2 * depth for depth in (6, 12, 24)]
    assert sizes == [two_streams + n * ELEMENTS * bits // 8 for n in segments]


def test_stored_and_checkpointed_chains_grow_with_every_block():
    stored, checkpointed = [], []
    for depth in (6, 12, 24):
        network, inputs = plain_vit(depth)
        stored.append(count_kept(network, inputs, ENDS[depth], allocator=False).in_chains)
        with checkpointing(network, [f"blocks.{i}" for i in range(depth)]):
            checkpointed.append(count_kept(network, inputs, ENDS[depth], allocator=False).in_chains)
    stream = ELEMENTS * torch.float32.itemsize
    assert checkpointed == [depth * stream for depth in (6, 12, 24)]
    assert stored[1] - stored[0] == (stored[2] - stored[1]) / 2 > 6 * 10 * stream


def held_beside_saved(counted: Kept, inputs: Any, output_elements: int) -> int:
    """What the allocator counts and autograd's hooks do not see, the network's own output aside."""
    (images,) = inputs  # saved by the first layer, but there before the forward
    assert counted.held is not None
    return counted.held - output_elements * images.element_size() - (counted.saved - images.nbytes)


def test_the_hooks_see_every_byte_of_a_stored_network():
    network, inputs = plain_vit(3)
    assert held_beside_saved(count_kept(network, inputs, ENDS[3]), inputs, 2 * 5) == 0


def test_beside_what_the_hooks_see_a_checkpoint_keeps_a_random_state_a_block():
    network, inputs = plain_vit(3)
    with checkpointing(network, [f"blocks.{i}" for i in range(3)]):
        counted = count_kept(network, inputs, ENDS[3])
    assert held_beside_saved(counted, inputs, 2 * 5) == 3 * torch.get_rng_state().nbytes


def test_the_hooks_see_every_byte_of_a_float_chain():
    _, inputs = plain_vit(3)
    assert held_beside_saved(kept(3, FLOAT, allocator=True), inputs, 2 * 5) == 0


def test_beside_what_the_hooks_see_an_exact_chain_keeps_its_checksums():
    _, inputs = plain_vit(3)
    counted = kept(3, Strategy("exact", 0.9, 0.1, "exact"), allocator=True)
    sum_least_and_most = 3 * torch.float64.itemsize
    checksums = 6 + 1  # of x before each segment, and of the first y
    assert held_beside_saved(counted, inputs, 2 * 5) == checksums * sum_least_and_most


def test_beside_what_the_hooks_see_a_random_segment_keeps_its_random_state():
    _, inputs = plain_vit(3)
    counted = kept(3, FLOAT, allocator=True, dropout=0.1)
    assert held_beside_saved(counted, inputs, 2 * 5) == 6 * torch.get_rng_state().nbytes


def test_the_script_writes_its_figures_and_a_picture(tmp_path):
    activation_bytes.main(["--network", "demo", "--depth", "0", "--batch", "1", "--output", str(tmp_path)])
    document = json.loads((tmp_path / "activation_bytes.json").read_text())
    (network,) = document["networks"]
    assert network["input"] == [[1, 1, 8, 8]]
    assert [row["strategy"] for row in network["bytes"]] == [strategy.name for strategy in STRATEGIES]
    assert document["gpu"] == "not measured yet"
    assert (tmp_path / "activation_bytes.png").read_bytes().startswith(b"\x89PNG")
