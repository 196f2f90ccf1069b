"""Random residual networks are either refused with a reason, or rewired right in every respect."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.strange.networks import NetworkPlan
from tests.strange.plans import networks
from tests.strange.properties import UnusableError, examine

OUTCOMES: Counter[str] = Counter()


@settings(deadline=None, max_examples=6, derandomize=True, suppress_health_check=list(HealthCheck))
@given(networks, st.integers(0, 2**16))
def test_a_random_network_is_refused_with_a_reason_or_rewired_right(plan: NetworkPlan, seed: int) -> None:
    try:
        outcome = examine(plan, seed)
    except UnusableError:
        assume(False)
    OUTCOMES[outcome] += 1
