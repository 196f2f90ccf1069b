"""What a map says of a network, against what is known of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from revsurgeon.errormap import ErrorMap
from revsurgeon.errors import RevsurgeonError, UnsupportedModelError, UsageError
from revsurgeon.rewiring.measure import at_coefficients, distance, gradients, output_tensors
from tests.errormap.networks import images, swin, vit
from tests.models import residual_stack, seeded

ROW = ((0.0, 1.0), (0.3, 0.7), (0.5, 0.5), (0.7, 0.3), (0.9, 0.1))
NETWORKS = {"vit": vit, "swin": swin}


def small() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    network, inputs = seeded(lambda: residual_stack(depth=4, dropout=0.1))
    return rs.rewire(network, example_inputs=inputs, recipe="dr2-hold"), inputs


@pytest.fixture(scope="module", params=NETWORKS)
def row(request: pytest.FixtureRequest) -> list[Any]:
    """The points of DESIGN's table, measured in both arithmetics."""
    network = NETWORKS[request.param]()
    found = []
    for alpha, beta in ROW:
        one = rs.errmap(network, example_inputs=images(), alphas=[alpha], betas=[beta], arithmetic="both")
        found.append(one.grid[alpha, beta])
    return found


def test_float_errors_grow_along_the_line_toward_the_pretrained_network(row: list[Any]) -> None:
    errors = [point.errors["float"].whole.relative for point in row]
    # A smaller beta divides more, 12 times over: more than double, until nothing is left to lose.
    assert all(min(2 * before, 0.9) < after for before, after in itertools.pairwise(errors))
    assert errors == sorted(errors)
    assert errors[0] < 1e-4
    assert errors[-1] > 0.1


def test_drift_shrinks_along_the_line_toward_the_pretrained_network(row: list[Any]) -> None:
    drifts = [point.drift for point in row]
    assert drifts == sorted(drifts, reverse=True)


def test_exact_gradients_are_the_stored_ones_bit_for_bit_in_every_chain(row: list[Any]) -> None:
    for point in row:
        exact = point.errors["exact"]
        for found in (exact.whole, *(chain.errors for chain in exact.chains)):
            assert (found.relative, found.cosine, found.max_abs, found.mse) == (0.0, 1.0, 0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_map_in_exact_arithmetic_is_zero(name: str) -> None:
    found = rs.errmap(NETWORKS[name](), example_inputs=images(), arithmetic="exact")
    errors = {p.errors["exact"].whole.relative for p in found.grid.values() if p.beta}
    assert errors == {0.0}


def test_a_point_is_what_one_measures_by_hand() -> None:
    network = swin()
    arguments: Any = ((images(),), {})
    found = rs.errmap(network, example_inputs=images(), alphas=[0.7], betas=[0.3]).grid[0.7, 0.3]
    with at_coefficients(network, 1.0, 0.0):
        pretrained = output_tensors(network, arguments)
    with at_coefficients(network, 0.7, 0.3, arithmetic="float"):
        reversible = gradients(network, arguments)
        with rs.stored_activations(network):
            stored = gradients(network, arguments)
            outputs = output_tensors(network, arguments)

    def error(names: list[str]) -> float:
        return distance([reversible[n] for n in names], [stored[n] for n in names])

    assert found.drift == distance(outputs, pretrained)
    float_errors = found.errors["float"]
    assert float_errors.whole.relative == pytest.approx(error(list(stored)))
    for chain, errors in zip(rs.chains(network), float_errors.chains, strict=True):
        assert errors.name == chain.name
        within = [n for n in stored if n.startswith(tuple(f"{path}." for path in chain.blocks))]
        assert errors.errors.relative == pytest.approx(error(within))
        assert float_errors.of(chain.name) == errors.errors


def test_at_beta_0_there_is_a_drift_and_nothing_to_reverse() -> None:
    network, inputs = small()
    found = rs.errmap(network, example_inputs=inputs, alphas=[0.5, 1.0], betas=[0.0, 0.5], arithmetic="both")
    assert found.grid[1.0, 0.0].drift == 0.0
    nothing = found.grid[0.5, 0.0]
    assert nothing.drift > 0.0
    assert (nothing.errors, nothing.bits, nothing.exact_bytes) == ({}, None, None)
    assert found.values("relative")[0] == [None, None]
    assert None not in found.values("relative")[1]


def test_the_memory_of_exact_arithmetic_is_what_it_keeps() -> None:
    network, inputs = small()
    found = rs.errmap(network, example_inputs=inputs, alphas=[0.5], betas=[0.01, 0.1, 0.5, 1.0])
    for (alpha, beta), point in found.grid.items():
        kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            if tensor.dtype in (torch.uint8, torch.int32):  # side buffers, and the streams at the end
                kept += tensor.nbytes
            return tensor

        with at_coefficients(network, alpha, beta, arithmetic="exact"):
            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            with hooks:
                output = network(*inputs)
            del output
        # Bits are packed in whole bytes for each of 4 segments; a packing may pad up to 8 bytes a bit.
        assert 0 <= kept - point.exact_bytes <= 4 * 8 * point.bits
    assert [point.bits for point in found.grid.values()] == [7, 4, 1, 0]


def test_the_network_is_left_as_it_was_found() -> None:
    network, inputs = small()
    network.train()
    (chain,) = rs.chains(network)
    chain.anchors, chain.grid_bits = 3, 17
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state, settings = torch.get_rng_state(), (chain.alpha, chain.beta, chain.arithmetic, chain.merge)
    rs.errmap(network, example_inputs=inputs, grid=3, arithmetic="both")
    assert (chain.alpha, chain.beta, chain.arithmetic, chain.merge) == settings
    assert (chain.anchors, chain.grid_bits, chain.stored) == (3, 17, False)
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_anchors_of_the_network_do_not_hide_where_it_would_need_them() -> None:
    network = vit()
    (chain,) = rs.chains(network)
    chain.anchors = 1
    point = rs.errmap(network, example_inputs=images(), alphas=[0.9], betas=[0.1]).grid[0.9, 0.1]
    chain.anchors = 0
    assert point.errors["float"].whole.relative > 0.1
    assert point.errors["float"].anchors_every is not None


@pytest.mark.slow
def test_processes_measure_the_same_as_this_one() -> None:
    network, inputs = small()
    alone = rs.errmap(network, example_inputs=inputs, grid=3, arithmetic="both")
    together = rs.errmap(network, example_inputs=inputs, grid=3, arithmetic="both", jobs=2)
    assert together.to_dict() == alone.to_dict()


def test_a_network_that_cannot_travel_is_measured_in_this_process_only() -> None:
    network, inputs = small()
    network.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(UsageError, match="cannot be sent to other processes"):
        rs.errmap(network, example_inputs=inputs, grid=3, jobs=2)
    assert len(rs.errmap(network, example_inputs=inputs, grid=2).grid) == 4


def test_what_exact_arithmetic_cannot_do_is_not_recommended() -> None:
    calls = itertools.count()  # not on the module, where it would be seen and refused

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * (1.0 + 1e-6 * (next(calls) % 7))

    network, inputs = seeded(lambda: residual_stack(depth=12))
    rs.rewire(network, example_inputs=inputs, recipe="dr2-hold")
    for block in network.blocks:
        block.linear = Noisy()
    found = rs.errmap(network, example_inputs=inputs, alphas=[0.9], betas=[0.1])
    assert found.exact_failure is not None
    assert "did not repeat" in found.exact_failure
    assert found.recommended is None or found.recommended.route.arithmetic == "float"
    assert ErrorMap.from_dict(found.to_dict()).to_dict() == found.to_dict()


def test_a_network_too_large_for_its_grid_at_some_point_is_measured_on_a_coarser_one() -> None:
    # Near (1, 1) the streams grow like Fibonacci's numbers, far beyond what was seen at the start.
    network, inputs = seeded(lambda: residual_stack(depth=30))
    rs.rewire(network, example_inputs=inputs, recipe="dr2-hold")
    with pytest.raises(RevsurgeonError, match="do not fit the grid"), at_coefficients(network, 1.0, 0.9):
        gradients(network, (inputs, {}))
    point = rs.errmap(network, example_inputs=inputs, alphas=[1.0], betas=[0.9], arithmetic="exact").grid
    assert point[1.0, 0.9].errors["exact"].whole.relative == 0.0


def test_the_recommendation_becomes_a_recipe_with_its_coefficients() -> None:
    network, inputs = small()
    found = rs.errmap(network, example_inputs=inputs, grid=5)
    assert found.recommended is not None
    route, recipe = found.recommended.route, found.recipe()
    assert (recipe.start.alpha, recipe.start.beta) == route.start
    assert recipe.arithmetic == route.arithmetic
    assert (recipe.end is None) == (route.start == route.end)
    assert recipe.merge == rs.chains(network)[0].merge


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arithmetic": "int"}, "not float, exact or both"),
        ({"jobs": 0}, "at least one process"),
        ({"dtype": "float8"}, "is not one of"),
        ({"dtype": "float64"}, "given as it is"),
        ({"recipe": "re2"}, "given as it is"),
        ({"chain": "nowhere"}, "no chain 'nowhere'"),
        ({"output": "/no/such/folder/map"}, "not there"),
        ({"example_inputs": None}, "not known how the network is called"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    network, inputs = small()
    with pytest.raises(UsageError, match=message):
        rs.errmap(network, **{"example_inputs": inputs, "grid": 2, **arguments})


def test_a_network_that_was_not_rewired_is_refused() -> None:
    network, inputs = residual_stack(depth=2)
    with pytest.raises(UnsupportedModelError, match="was not rewired"):
        rs.errmap(network, example_inputs=inputs)


def test_a_network_without_gradients_is_refused() -> None:
    network, inputs = small()
    network.requires_grad_(False)
    with pytest.raises(UsageError, match="needs a gradient"):
        rs.errmap(network, example_inputs=inputs)
