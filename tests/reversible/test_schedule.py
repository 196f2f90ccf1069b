"""The schedule moves the coefficients as its policy, order and end say, and resumes where it stood."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import revsurgeon as rs
from tests.models import residual_stack


@pytest.fixture
def network() -> nn.Module:
    network, inputs = residual_stack(2)
    return rs.rewire(network, example_inputs=inputs)


def path(network: nn.Module, steps: int, **options: Any) -> list[tuple[float, float]]:
    schedule = rs.CoefficientSchedule(network, steps, start=(1.0, 0.1), end=(0.3, 0.7), **options)
    points = [rs.get_coefficients(network)]
    for _ in range(steps):
        schedule.step()
        points.append(rs.get_coefficients(network))
    return points


@pytest.mark.parametrize("policy", ["linear", "exponential", "logarithmic"])
@pytest.mark.parametrize("order", ["simultaneous", "alpha-first", "beta-first"])
def test_every_policy_and_order_leads_from_start_to_end_without_turning_back(
    network: nn.Module, policy: str, order: str
) -> None:
    points = path(network, 20, policy=policy, order=order)
    assert points[0] == (1.0, 0.1)
    assert points[-1] == (0.3, 0.7)
    alphas, betas = zip(*points, strict=True)
    assert list(alphas) == sorted(alphas, reverse=True)
    assert list(betas) == sorted(betas)


def test_the_policies_differ_in_where_they_are_fast(network: nn.Module) -> None:
    half = {p: path(network, 10, policy=p)[5][1] for p in ("exponential", "linear", "logarithmic")}
    assert half["exponential"] < half["linear"] < half["logarithmic"]
    assert half["linear"] == pytest.approx(0.4)


def test_alpha_first_moves_alpha_in_the_first_half_and_beta_in_the_second(network: nn.Module) -> None:
    points = path(network, 10, order="alpha-first")
    assert all(beta == 0.1 for _, beta in points[:6])
    assert all(alpha == pytest.approx(0.3) for alpha, _ in points[5:])
    points = path(network, 10, order="beta-first")
    assert all(alpha == 1.0 for alpha, _ in points[:6])


def test_the_line_alpha_plus_beta_is_one_is_not_left(network: nn.Module) -> None:
    schedule = rs.CoefficientSchedule(network, 30, start=(0.9, 0.1), end=(0.3, 0.7))
    for _ in range(30):
        schedule.step()
        assert sum(rs.get_coefficients(network)) == pytest.approx(1.0, abs=1e-12)


def test_updates_come_every_eta_iterations(network: nn.Module) -> None:
    points = path(network, 12, update_every=4)
    assert len(set(points)) == 4
    assert points[0] == points[3] != points[4] == points[7]


@pytest.mark.parametrize(
    ("until", "end"), [({"steps": 6}, 6), ({"fraction": 0.5}, 5), ({"epochs": 2}, 8), ({"epochs": 0.5}, 2)]
)
def test_the_end_is_given_in_steps_epochs_or_as_a_fraction(
    network: nn.Module, until: dict[str, float], end: int
) -> None:
    points = path(network, 10, until=until, steps_per_epoch=4)
    assert points.index((0.3, 0.7)) == end
    assert set(points[end:]) == {(0.3, 0.7)}


def test_its_state_resumes_where_it_stood(network: nn.Module) -> None:
    schedule = rs.CoefficientSchedule(network, 10, start=(1.0, 0.1), end=(0.3, 0.7))
    for _ in range(4):
        schedule.step()
    state, point = schedule.state_dict(), rs.get_coefficients(network)
    rs.set_coefficients(network, 0.0, 1.0)
    resumed = rs.CoefficientSchedule(network, 99)
    resumed.load_state_dict(state)
    assert rs.get_coefficients(network) == point
    resumed.step()
    schedule.step()
    assert schedule.state_dict() == resumed.state_dict()


def test_the_recipes_schedule_is_the_rewired_networks() -> None:
    network, inputs = residual_stack(2)
    rs.rewire(network, example_inputs=inputs, recipe="dr2-balanced")
    schedule = rs.CoefficientSchedule.from_manifest(network, total_steps=4)
    start = rs.get_coefficients(network)  # dr2-balanced searches for it
    assert schedule.coefficients_at(0) == start
    assert start[0] == 1 - start[1]
    assert schedule.coefficients_at(4) == (0.3, 0.7)


def test_a_schedule_counts_the_steps_of_a_network_that_stays_and_moves_nothing() -> None:
    network, inputs = residual_stack(2)
    rs.rewire(network, example_inputs=inputs)  # dr2-hold
    start = rs.get_coefficients(network)
    schedule = rs.CoefficientSchedule.from_manifest(network, total_steps=3)
    for _ in range(5):  # two more than were announced
        schedule.step()
        assert rs.get_coefficients(network) == start
    state = schedule.state_dict()
    assert (state["steps_done"], state["start"], state["end"]) == (5, list(start), list(start))
    resumed = rs.CoefficientSchedule.from_manifest(network, total_steps=3)  # its chains know where it stands
    assert resumed.state_dict() == state
    assert rs.get_coefficients(network) == start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "cubic"}, "policy"),
        ({"order": "both"}, "order"),
        ({"update_every": 0}, "update_every"),
        ({"until": {"fraction": 1.5}}, "fraction"),
        ({"until": {"epochs": 1}}, "steps_per_epoch"),
        ({"until": {"steps": 1, "epochs": 1}}, "one end"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    network: nn.Module, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(rs.RevsurgeonError) as error:
        rs.CoefficientSchedule(network, 10, **options)
    assert message in str(error.value)
    with pytest.raises(rs.RevsurgeonError, match="total_steps"):
        rs.CoefficientSchedule(network, 0)


def test_a_network_that_was_not_rewired_has_no_schedule() -> None:
    with pytest.raises(rs.UnsupportedModelError, match="not rewired"):
        rs.CoefficientSchedule(nn.Linear(2, 2), 10)
