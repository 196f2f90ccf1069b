"""Weights that a chain shares with code outside it: their gradients are sums in another order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from revsurgeon.checks.steps import running
from revsurgeon.reversible.coefficients import some_chains, stored_activations
from revsurgeon.rewiring.measure import Arguments
from revsurgeon.rewiring.unrewired import segment_parameters


def shared_uses(network: nn.Module, arguments: Arguments) -> int:
    """The most calls, in one forward, of a module whose weights a chain and something outside it use.

    Autograd adds up what the calls give in the order in which their backward comes, and a chain's comes all
    at once. Two terms have the same sum in either order; three or more may round otherwise.

    Args:
        network: rewired.
        arguments: of its forward.

    Returns:
        0 if there is no such module, or none with more than two calls.
    """
    calls: Counter[nn.Module] = Counter()

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[module] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        with running(network, training=True), stored_activations(network), torch.no_grad():
            network(*arguments[0], **arguments[1])
    finally:
        handle.remove()
    in_chains: Counter[str] = Counter()
    for chain in some_chains(network):
        names = [name for segment in segment_parameters(network, chain).values() for name in segment]
        in_chains |= Counter(names)  # the chain that uses it most
    paths = {module: path for path, module in network.named_modules()}
    found = [0]
    for module, times in calls.items():
        for name in module._parameters:
            inside = in_chains.get(f"{paths.get(module)}.{name}", 0)
            if 0 < inside < times and times > 2:
                found.append(times)
    return max(found)
