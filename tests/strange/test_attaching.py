"""Chains that no network has are refused before anything is put in place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import revsurgeon as rs
from revsurgeon.rewiring import ChainSpec, attach
from tests.strange.networks import NetworkPlan, build
from tests.strange.properties import fingerprint

CHAIN = ChainSpec("stage0", ("stage0.0", "stage0.1"), ("x", "x"), (0, 0), (1, 1))


@pytest.mark.parametrize(
    ("chains", "words"),
    [
        pytest.param([replace(CHAIN, blocks=("", "stage0.1"))], "an empty path", id="an empty path"),
        pytest.param([CHAIN, CHAIN], "in two chains", id="the same chain twice"),
        pytest.param(
            [CHAIN, replace(CHAIN, name="others", blocks=("stage0.1", "stage0.2"))],
            "chains 'stage0' and 'others'",
            id="chains that share a block",
        ),
        pytest.param([replace(CHAIN, blocks=("stage0.0", "stage0.9"))], "no module", id="a missing block"),
    ],
)
def test_chains_that_do_not_fit_are_refused_and_the_network_is_left_alone(
    chains: list[ChainSpec], words: str
) -> None:
    network, _ = build(NetworkPlan(), 0)
    before = fingerprint(network)
    with pytest.raises(rs.UnsupportedModelError, match=words):
        attach(network, chains)
    assert fingerprint(network) == before
    assert rs.chains(network) == []


def test_a_block_that_is_rewired_already_is_not_put_into_another_chain() -> None:
    network, x = build(NetworkPlan(), 0)
    attach(network, [CHAIN])
    with pytest.raises(rs.UnsupportedModelError, match="rewired before"):
        attach(network, [CHAIN])
    assert torch.is_tensor(network.eval()(x))
