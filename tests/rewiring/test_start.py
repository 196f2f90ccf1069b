"""`start: auto`: the largest beta of the ladder whose drift is allowed, and the record of the search."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from revsurgeon.recipes import Recipe, load_recipe
from revsurgeon.rewiring import rewire_with_checks
from revsurgeon.rewiring.measure import distance
from revsurgeon.rewiring.start import LADDER, MAX_DRIFT
from tests.models import residual_stack, seeded


def recipe(**changes: Any) -> Recipe:
    base = {"name": "a", "mode": "dr2", "start": "auto", "end": {"alpha": 0.3, "beta": 0.7}}
    return Recipe.model_validate({**base, **changes})


def stack() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    network, inputs = seeded(lambda: residual_stack(depth=4))
    for block in network.blocks:
        nn.init.normal_(block.linear.weight, generator=torch.Generator().manual_seed(1))
    return network, inputs


@functools.cache
def drifts() -> dict[float, float]:
    """Of the ladder's betas, with the better rule, measured on the sample that the search takes."""
    network, (inputs,) = stack()
    with torch.no_grad():
        expected = network(inputs[:-1])
        rs.rewire(network, example_inputs=(inputs,), recipe=recipe(start={"alpha": 0.5, "beta": 0.5}))
        (chain,) = rs.chains(network)
        chain.arithmetic = "float"
        found = {}
        for beta in LADDER:
            rs.set_coefficients(network, 1 - beta, beta)
            for chain.merge in ("normalized", "last"):
                drift = distance([network(inputs[:-1])], [expected])
                found[beta] = min(drift, found.get(beta, drift))
    return found


@pytest.mark.parametrize("allowed", [0.5, MAX_DRIFT, 0.02, 1e-4])
def test_the_start_is_the_largest_beta_whose_drift_is_allowed(allowed: float) -> None:
    network, inputs = stack()
    _, found = rewire_with_checks(network, inputs, recipe(max_drift=allowed))
    wanted = next((beta for beta in LADDER if drifts()[beta] <= allowed), LADDER[-1])
    assert rs.get_coefficients(network) == (1 - wanted, wanted)
    assert found is not None
    assert found.start is not None
    assert found.start.met == (drifts()[wanted] <= allowed)
    assert found.drift == pytest.approx(drifts()[wanted], rel=1e-3)
    measured = [rung.beta for rung in found.start.rungs]
    assert measured == list(LADDER[: LADDER.index(wanted) + 1])
    assert [chain.merge for chain in rs.chains(network)] == [found.merge]


def test_the_limits_of_the_test_above_fall_on_different_rungs() -> None:
    fitting = [
        sum(drift <= allowed for drift in drifts().values()) for allowed in (0.5, MAX_DRIFT, 0.02, 1e-4)
    ]
    assert len(set(fitting)) == 4


def test_what_is_chosen_for_the_start_is_chosen_at_that_start() -> None:
    network, inputs = stack()
    _, found = rewire_with_checks(network, inputs, recipe(max_drift=0.02))
    beta = rs.get_coefficients(network)[1]
    again, _ = stack()
    _, given = rewire_with_checks(again, inputs, recipe(start={"alpha": 1 - beta, "beta": beta}))
    assert found is not None
    assert given is not None
    assert given.start is None
    kept = ("drift", "merge", "arithmetic", "float_gradient_error", "grid_bits")
    assert [getattr(found, name) for name in kept] == [getattr(given, name) for name in kept]


def test_the_schedule_begins_at_the_start_that_was_found() -> None:
    network, inputs = stack()
    rs.rewire(network, example_inputs=inputs, recipe=recipe(max_drift=0.02))
    start = rs.get_coefficients(network)
    schedule = rs.CoefficientSchedule.from_manifest(network, total_steps=2)
    assert schedule.start == start != (0.9, 0.1)
    schedule.step()
    schedule.step()
    assert rs.get_coefficients(network) == (0.3, 0.7)


def test_without_measurements_the_search_starts_at_its_first_rung() -> None:
    network, inputs = stack()
    rewire_with_checks(network, inputs, recipe(), check=False)
    assert rs.get_coefficients(network) == (0.9, 0.1)
    assert rs.CoefficientSchedule.from_manifest(network, total_steps=2).start == (0.9, 0.1)


def test_the_manifest_has_the_start_that_was_found_and_what_was_measured(tmp_path: Path) -> None:
    from revsurgeon.artifact import read_manifest

    path = rs.convert("demo", output=tmp_path / "demo", max_drift=0.02)
    manifest = read_manifest(path)
    start = manifest.coefficients
    assert (start.alpha, start.beta) == (0.98, 0.02)
    assert manifest.recipe.start == start
    searched: Any = manifest.checks["self_check"]
    assert searched["start"]["max_drift"] == 0.02
    assert [rung["beta"] for rung in searched["start"]["measured"]] == [0.1, 0.05, 0.02]
    drifts = [rung["drift"] for rung in searched["start"]["measured"]]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-2] > 0.02 >= drifts[-1] == searched["drift"]
    model = rs.load(path)
    assert rs.CoefficientSchedule.from_manifest(model, total_steps=3).start == (0.98, 0.02)


@pytest.mark.slow
def test_the_recipe_of_the_manifest_makes_the_same_artifact_again(tmp_path: Path) -> None:
    from revsurgeon.artifact import read_manifest

    first = rs.convert("demo", output=tmp_path / "first")
    recipe = read_manifest(first).recipe
    second = rs.convert("demo", output=tmp_path / "second", recipe=recipe)
    a, b = (read_manifest(path).model_dump() for path in (first, second))
    assert a["checks"]["self_check"].pop("start")
    assert a == b


def test_a_start_of_ones_own_replaces_the_search_of_the_preset(tmp_path: Path) -> None:
    assert load_recipe("dr2-balanced").start == "auto"
    path = rs.convert("demo", output=tmp_path / "demo", start=(0.8, 0.2))
    assert rs.get_coefficients(rs.load(path)) == (0.8, 0.2)


@pytest.mark.slow
def test_real_inputs_decide_where_random_ones_would_start_elsewhere(tmp_path: Path) -> None:
    # Constant images: the first norm of the demo network sees other tokens than those of random images.
    torch.save(torch.full((3, 1, 8, 8), 0.5), tmp_path / "images.pt")
    by_random = rs.convert("demo", output=tmp_path / "a", start="auto", max_drift=0.02)
    by_real = rs.convert(
        "demo", output=tmp_path / "b", start="auto", max_drift=0.02, real_input=tmp_path / "images.pt"
    )
    from revsurgeon.artifact import read_manifest

    drifts = [read_manifest(p).checks["self_check"]["start"]["measured"] for p in (by_random, by_real)]  # type: ignore[index,call-overload]
    assert drifts[0] != drifts[1]
