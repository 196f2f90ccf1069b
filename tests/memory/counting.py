"""Counts a real training step with the same tracker that counts simulated ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from revsurgeon.anatomy.probe import as_arguments
from revsurgeon.memory.optimizers import make_optimizer, state_tensors
from revsurgeon.memory.simulation import Sharding, Simulator
from revsurgeon.memory.skeleton import constants, skeleton
from revsurgeon.memory.step import StepOptions, training_step
from revsurgeon.memory.strategies import STRATEGIES, Point, training_by
from revsurgeon.memory.tracker import Tracker
from revsurgeon.recipes import load_recipe
from revsurgeon.rewiring import rewire_with_checks

POINT = Point(0.9, 0.1)


def rewired(network: nn.Module, inputs: Any) -> nn.Module:
    rewire_with_checks(network, inputs, load_recipe("dr2-hold"), check=False)
    return network


def predicted(network: nn.Module, inputs: Any, way: str, optimizer: str = "sgd", amp: str = "none") -> Any:
    """What is simulated for a rewired network that is planned for the CPU."""
    options = StepOptions(amp=amp)
    simulator = Simulator(skeleton(network, "meta"), optimizer, "cpu", options, Sharding(), POINT)
    return simulator.predict(STRATEGIES[way], as_arguments(inputs))


def counted(network: nn.Module, inputs: Any, way: str, optimizer: str = "sgd", amp: str = "none") -> Tracker:
    """A real step of it, behind one that makes the states and cuts the blocks."""
    arguments, options = as_arguments(inputs), StepOptions(amp=amp)
    network.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    stepper = make_optimizer(optimizer, trained, "cpu")
    with training_by(network, STRATEGIES[way], POINT):
        training_step(network, arguments, stepper, options)
        tracker = Tracker()
        tracker.adopt(network.parameters(), "parameters")
        leaves = torch.utils._pytree.tree_leaves((arguments, constants(network)))
        tracker.adopt([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)], "inputs")
        tracker.adopt(state_tensors(stepper), "optimizer")

        def enter(phase: str) -> None:
            if phase == "kept":
                tracker.kept = tracker.totals()["activations"]  # type: ignore[attr-defined]
            else:
                tracker.phase = phase

        with tracker:
            training_step(network, arguments, stepper, options, enter=enter)
    return tracker
