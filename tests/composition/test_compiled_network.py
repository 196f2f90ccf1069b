"""torch.compile around a rewired network, and inside one: graph breaks at the chains, right gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo as dynamo
from torch._dynamo.utils import counters
from torch.torch_version import TorchVersion

import revsurgeon as rs
from tests.composition.agreement import assert_agree, both_arithmetics, loss_of, rewired, stack

both_backends = pytest.mark.parametrize("backend", ["eager", "aot_eager"])


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    dynamo.reset()
    counters.clear()
    yield
    dynamo.reset()


@both_arithmetics
@both_backends
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_compiled_network_has_the_stored_gradients_with_breaks_around_its_chain(
    arithmetic: str, backend: str, training: bool
) -> None:
    network, inputs = rewired("timm vit", arithmetic, training=training)
    compiled = torch.compile(network, backend=backend)
    assert_agree(network, lambda: loss_of(compiled, inputs).backward(), arithmetic)
    assert counters["stats"]["unique_graphs"] >= 2, "before and behind the chain"
    assert sum(counters["graph_break"].values()) >= 1


@both_arithmetics
def test_coefficients_that_move_every_step_recompile_nothing_of_a_compiled_network(arithmetic: str) -> None:
    network, inputs = rewired("timm vit", arithmetic)
    compiled = torch.compile(network, backend="aot_eager")
    loss_of(compiled, inputs).backward()
    graphs = counters["stats"]["unique_graphs"]
    alpha, beta = rs.get_coefficients(network)
    toward = 1 if beta < 0.5 else -1
    with dynamo.config.patch(error_on_recompile=True):
        for number in range(1, 6):
            rs.set_coefficients(network, alpha - toward * 0.1 * number, beta + toward * 0.1 * number)
            loss_of(compiled, inputs).backward()
    assert counters["stats"]["unique_graphs"] == graphs > 0


@both_arithmetics
def test_the_whole_network_in_one_graph_is_refused(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    with pytest.raises(dynamo.exc.Unsupported, match="RewiredForward"):
        torch.compile(network, backend="eager", fullgraph=True)(*inputs)


@both_arithmetics
def test_layers_compiled_one_by_one_inside_segments_reverse(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    for block in network.blocks:
        block.linear = torch.compile(block.linear, backend="aot_eager")
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    # torch 2.11 runs such layers uncompiled there (docs/support.md).
    assert (counters["stats"]["unique_graphs"] >= 1) is (torch.__version__ >= TorchVersion("2.12"))
