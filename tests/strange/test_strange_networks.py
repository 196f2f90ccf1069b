"""Random residual networks are either refused with a reason, or rewired right in every respect."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.strange.cheaper import cheaper
from tests.strange.networks import BlockPlan, BranchPlan, NetworkPlan
from tests.strange.plans import networks
from tests.strange.properties import UnusableError, examine

OUTCOMES: Counter[str] = Counter()


@settings(deadline=None, max_examples=6, derandomize=True, suppress_health_check=list(HealthCheck))
@given(networks, st.integers(0, 2**16))
def test_a_random_network_is_refused_with_a_reason_or_rewired_right(plan: NetworkPlan, seed: int) -> None:
    try:
        with contextlib.nullcontext() if seed % 4 == 0 else cheaper():
            outcome = examine(plan, seed)
    except UnusableError:
        assume(False)
    OUTCOMES[outcome] += 1


def test_a_block_that_holds_a_block_in_another_call_of_it_is_rewired_as_a_whole() -> None:
    """Called once in a row with its like, and once behind a block of which only a part can be rewired."""
    turned = BranchPlan(activation="relu in place", add="x += f", turned=True)
    blocks = BlockPlan(branches=(turned, BranchPlan(body="nothing", place="branch", turned=True)))
    plan = NetworkPlan(
        images=True, block=blocks, depth=2, shared=True, odd_block=replace(blocks, oddity="counter")
    )
    with cheaper():
        assert examine(plan, 0) == "rewired"
