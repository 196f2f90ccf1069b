"""Random programs of autograd calls give the values of stored activations, or are refused with a reason."""

from __future__ import annotations

import contextlib

import pytest

from revsurgeon.reversible.tape import Tape
from tests.strange.cheaper import cheaper
from tests.usage.comparison import WrongError, compare
from tests.usage.networks import MAKES, SMALL


@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("name", SMALL)
def test_random_programs_agree_with_stored_activations(name: str, arithmetic: str) -> None:
    with cheaper():
        outcomes = [compare(name, seed, arithmetic) for seed in range(4, 8)]
    assert outcomes.count("agrees") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["exact", "float"])
@pytest.mark.parametrize("name", MAKES)
def test_many_random_programs_agree_with_stored_activations(name: str, arithmetic: str) -> None:
    with cheaper() if name in SMALL else contextlib.nullcontext():
        outcomes = [compare(name, seed, arithmetic) for seed in range(100, 250 if name in SMALL else 120)]
    assert outcomes.count("agrees") >= len(outcomes) // 2


def test_streams_written_over_while_the_chain_runs_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tape, "_lets_go", property(lambda tape: not tape._keep_graph))
    with cheaper(), pytest.raises(WrongError):
        [compare("stack", seed, "exact") for seed in range(200)]
