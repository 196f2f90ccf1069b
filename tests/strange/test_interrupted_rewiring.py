"""Rewiring that is interrupted leaves the network as it was, whatever it was doing."""

from __future__ import annotations

import pytest
import torch

import revsurgeon as rs
from tests.strange.cheaper import cheaper
from tests.strange.networks import BlockPlan, BranchPlan, NetworkPlan, build
from tests.strange.properties import MOMENTS, fingerprint, interrupted, rewire

PLAN = NetworkPlan(block=BlockPlan(branches=(BranchPlan(norm="batch"),), oddity="counter"), depth=2)


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_leaves_the_network_as_it_was_and_it_can_be_rewired_afterwards(moment: str) -> None:
    network, x = build(PLAN, 0)
    before, random = fingerprint(network), torch.get_rng_state()

    with cheaper():
        assert interrupted(network, x, moment)

    assert rs.chains(network) == []
    assert fingerprint(network) == before
    assert torch.equal(torch.get_rng_state(), random)
    with cheaper():
        rewire(network, x)
    assert len(rs.chains(network)) == 1
