"""How fast the error of float reversal grows, and how far apart anchors may be."""

from __future__ import annotations

import functools

import pytest

import revsurgeon as rs
from revsurgeon.errormap.growth import FINE, Growth, fit_growth
from revsurgeon.errormap.subject import Subject, subject_of
from revsurgeon.errormap.sweep import Sweep
from revsurgeon.reversible.coefficients import stored_activations
from revsurgeon.rewiring.measure import at_coefficients, distance, gradients


def test_growth_is_read_off_the_errors_that_are_not_yet_garbage() -> None:
    distances = [1.5, 3.5, 5.5, 7.5, 9.5]
    errors = [1e-8 * 10**d for d in distances]
    found = fit_growth(distances, [min(e, 0.9) for e in errors], 10, rounding=1e-8, beta=0.1)
    assert found.first == pytest.approx(1e-8)
    assert found.rate == pytest.approx(10)


@pytest.mark.parametrize("errors", [[0.9, 0.9], [1e-7, 0.5], [0.0, 0.0], [0.0, 1e-5], []])
def test_where_nothing_can_be_read_off_the_worst_case_is_taken(errors: list[float]) -> None:
    found = fit_growth(range(1, len(errors) + 1), errors, 12, rounding=6e-8, beta=0.05)
    assert found == Growth(6e-8, 20.0, 12)


def test_errors_that_do_not_grow_have_the_rate_one() -> None:
    found = fit_growth([1, 3, 5], [3e-7, 2e-7, 1e-7], 6, rounding=6e-8, beta=1.0)
    assert found.rate == 1.0
    assert found.stretch() == 6


@pytest.mark.parametrize("rate", [1.0, 1.5, 3.0, 10.0, 1e3, 1e6])
def test_a_stretch_is_the_longest_that_keeps_the_chain_below_the_limit(rate: float) -> None:
    growth = Growth(1e-7, rate, 24)

    def error(k: int) -> float:
        return 24 / k * 1e-7 * rate**k

    k = growth.stretch()
    assert k == max((i for i in range(1, 25) if error(i) <= FINE), default=0)


def test_a_chain_of_any_length_is_answered_for() -> None:
    assert Growth(1e-8, 20.0, 4000).stretch() == 1
    assert Growth(1e-300, 1.0, 4000).stretch() == 4000


@functools.cache
def demo() -> tuple[Subject, Sweep]:
    subject = subject_of("demo")
    return subject, Sweep.of(subject.model, subject.arguments, ("float",))


@pytest.mark.parametrize("place", [(0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.98, 0.02)])
def test_anchors_as_far_apart_as_it_says_do_make_the_gradients_fine(place: tuple[float, float]) -> None:
    subject, sweep = demo()
    errors = sweep.measure(*place).errors["float"]
    assert errors.whole.relative > FINE
    every = errors.anchors_every
    assert every is not None
    assert every >= 1
    with at_coefficients(subject.model, *place, arithmetic="float"):
        with stored_activations(subject.model):
            expected = gradients(subject.model, subject.arguments)

        def error(anchors: int) -> float:
            (chain,) = rs.chains(subject.model)
            chain.anchors = anchors
            found = gradients(subject.model, subject.arguments)
            return distance(list(found.values()), list(expected.values()))

        assert error(every) <= FINE
        assert error(min(12, 2 * every + 2)) > FINE  # and it is not said for nothing
