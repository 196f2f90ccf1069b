"""What must be true of a network that is handed to `rewire`, whatever it looks like."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils import _pytree as pytree

import revsurgeon as rs
from revsurgeon.checks.reference import by_the_equations
from revsurgeon.recipes import load_recipe
from tests.strange.networks import NetworkPlan, build

REORDERED = 2.0**-17
"""Relative difference that float32 sums in another order may have: 2**6 roundings of 2**-23.

A recurrent layer adds to its weights' gradient once for each of 6 tokens. Where its block is called
twice, a stored backward adds the 12 one by one, and a reversible one what each call has added up.
"""

REPEATS = 2.0**-40
"""Relative difference that float64 sums in another order may have: 2**12 roundings of 2**-52."""

NEAR = 2.0**-50
"""Relative change of an input as a few roundings of float64 make it."""

ROUNDINGS = 2**6
"""How many such changes, one in each operation of a block's branches, may add up."""


@dataclass
class Step:
    """What one forward and backward leave."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]
    random: torch.Tensor


class UnusableError(Exception):
    """The plan makes no network that can be trained as it is."""


def examine(plan: NetworkPlan, seed: int) -> str:
    """Rewire the network of a plan, and assert all that is promised.

    Returns:
        "rewired", or "refused: " and the reason.

    Raises:
        UnusableError: the network itself does not run.
        AssertionError: a promise is broken.
    """
    network, x = build(plan, seed)
    original = copy.deepcopy(network)
    try:
        plain = step(original, x, 0)
        step(original, x[:1], 0, training=False)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        raise UnusableError(str(error)) from error
    if not all(bool(torch.isfinite(output).all()) for output in plain.outputs):
        raise UnusableError("it overflows")
    before = fingerprint(network)
    random = torch.get_rng_state()
    try:
        if interrupted(network, x, list(MOMENTS)[seed % len(MOMENTS)]):
            assert rs.chains(network) == []
            assert fingerprint(network) == before
            assert torch.equal(torch.get_rng_state(), random)
            rewire(network, x)
    except rs.UnsupportedModelError as refusal:
        reason = refusal.what
    else:
        reason = None
    if reason is not None:
        assert len(reason) > 10
        assert fingerprint(network) == before
        assert_same(step(network, x, 0), plain)
        return f"refused: {reason}"
    assert torch.equal(torch.get_rng_state(), random)
    assert_equal_to_the_original(network, original, x)
    assert_alive(network, x)
    # Which blocks a run leaves out is the run's own business, of which the equations know nothing.
    leaves_out = "skipped at random" in {plan.block.oddity, plan.odd_block and plan.odd_block.oddity}
    bodies = {b.body for block in (plan.block, plan.odd_block) if block is not None for b in block.branches}
    order = REORDERED if plan.shared and "recurrent" in bodies else 0.0
    assert_gradients(network, x, training=not leaves_out, order=order)
    assert_still_the_users(network, original, x)
    return "rewired"


def step(
    network: nn.Module, x: torch.Tensor, seed: int, *, training: bool = True, stored: bool = False
) -> Step:
    """Forward and backward from a random state, with the buffers put back afterwards."""
    held = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train(training)
    network.zero_grad()
    torch.manual_seed(seed)
    with rs.stored_activations(network) if stored else contextlib.nullcontext():
        found = network(x)
        outputs = [t for t in pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]
        loss = sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in outputs)
        loss.backward()
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(held[name])
    return Step([t.detach() for t in outputs], gradients, buffers, torch.get_rng_state())


def assert_same(actual: Step, expected: Step, order: float = 0.0) -> None:
    """Every bit of two steps is the same; gradients up to a relative error that comes from another order."""
    assert len(actual.outputs) == len(expected.outputs)
    assert all(torch.equal(a, e) for a, e in zip(actual.outputs, expected.outputs, strict=True)), "outputs"
    wrong = [n for n, g in expected.gradients.items() if not _equal(actual.gradients[n], g, order)]
    assert wrong == [], "gradients"
    assert [n for n, b in expected.buffers.items() if not torch.equal(actual.buffers[n], b)] == [], "buffers"
    assert torch.equal(actual.random, expected.random), "random state"


def _equal(a: torch.Tensor | None, b: torch.Tensor | None, order: float) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b) or float((a - b).norm()) <= order * float(b.norm())


def fingerprint(network: nn.Module) -> list[Any]:
    """All that a network is: its classes, attributes, hooks and weights."""
    found: list[Any] = []
    for name, module in network.named_modules():
        own = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        hooks = {k: len(v) for k, v in vars(module).items() if k.endswith("_hooks") and v is not None}
        found.append((name, type(module), sorted(own), hooks, module.training))
    return found + [(n, t.dtype, t.sum().item()) for n, t in network.state_dict().items()]


@contextlib.contextmanager
def coefficients(network: nn.Module, alpha: float, beta: float) -> Iterator[None]:
    """Other coefficients inside this context."""
    held = rs.get_coefficients(network)
    rs.set_coefficients(network, alpha, beta)
    try:
        yield
    finally:
        rs.set_coefficients(network, *held)


def assert_equal_to_the_original(network: nn.Module, original: nn.Module, x: torch.Tensor) -> None:
    """At (1, 0) outputs, buffers and random state are the original's, on two batch sizes in both modes."""
    with coefficients(network, 1.0, 0.0):
        for training, inputs in ((True, x), (False, x), (False, x[:1])):
            expected = step(original, inputs, 1, training=training)
            found = step(network, inputs, 1, training=training, stored=True)
            assert all(torch.equal(a, e) for a, e in zip(found.outputs, expected.outputs, strict=True)), (
                "outputs at (1, 0)"
            )
            assert all(torch.equal(found.buffers[n], b) for n, b in expected.buffers.items())
            assert torch.equal(found.random, expected.random)


def assert_alive(network: nn.Module, x: torch.Tensor) -> None:
    """The second stream takes part: what the chains' blocks return depends on beta."""
    network = copy.deepcopy(network)  # a forward moves its buffers

    def returned() -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        handles = [
            network.get_submodule(path).register_forward_hook(
                lambda module, args, output: seen.extend(
                    t.detach().clone() for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)
                )
            )
            for chain in rs.chains(network)
            for path in chain.blocks[-1:]
        ]
        network.eval()
        with torch.no_grad():
            network(x)
        for handle in handles:
            handle.remove()
        return seen

    with coefficients(network, 1.0, 0.5):
        moved = returned()
    with coefficients(network, 1.0, 0.0):
        still = returned()
    assert not all(torch.equal(a, b) for a, b in zip(moved, still, strict=True)), "beta changes nothing"


def assert_gradients(network: nn.Module, x: torch.Tensor, *, training: bool, order: float) -> None:
    """Exact gradients are the stored ones, bit for bit; in float64 they are those of the equations.

    Args:
        network: rewired.
        x: its input.
        training: the mode in which the equations are asked.
        order: the relative error that exact gradients may have because sums have another order.
    """
    for (alpha, beta), mode in (((0.9, 0.1), True), ((0.5, 0.5), True), ((0.3, 0.7), False)):
        with coefficients(network, alpha, beta):
            reversible, stored = (step(network, x, 2, training=mode, stored=s) for s in (False, True))
            assert_same(reversible, stored, order)
    precise, x = copy.deepcopy(network).double(), x.double()
    for chain in rs.chains(precise):
        chain.arithmetic = "float"
    with coefficients(precise, 0.4, 0.8):
        reversible = step(precise, x, 3, training=training)
        with by_the_equations(precise):
            expected, near = (step(precise, inputs, 3, training=training) for inputs in (x, x * (1 + NEAR)))
    assert torch.equal(reversible.random, expected.random)
    names = [n for n, g in expected.gradients.items() if g is not None]
    assert names == [n for n, g in reversible.gradients.items() if g is not None]
    segments = max(sum(chain.segments) for chain in rs.chains(network))
    bound = REPEATS / 0.8**segments * max(_length(expected.gradients), 1.0)
    # A network that by the equations, too, magnifies a rounding of its input does so with all others.
    bound += ROUNDINGS * _length(_difference(near.gradients, expected.gradients))
    off = _length(_difference(reversible.gradients, expected.gradients))
    assert off <= bound, f"gradients against the equations: {off} above {bound}"


def _difference(
    actual: dict[str, torch.Tensor | None], expected: dict[str, torch.Tensor | None]
) -> dict[str, torch.Tensor | None]:
    pairs = ((name, actual[name], g) for name, g in expected.items())
    return {name: a - g for name, a, g in pairs if a is not None and g is not None}


def _length(gradients: dict[str, torch.Tensor | None]) -> float:
    return sum(float(g.square().sum()) for g in gradients.values() if g is not None) ** 0.5


def assert_still_the_users(network: nn.Module, original: nn.Module, x: torch.Tensor) -> None:
    """Names and weights are the original's; copies, pickles and state_dicts of it train the same way."""
    weights = original.state_dict()
    assert list(network.state_dict()) == list(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    expected = step(network, x, 4)
    assert_same(step(copy.deepcopy(network), x, 4), expected)
    loaded = pickle.loads(pickle.dumps(network))
    assert_same(step(loaded, x, 4), expected)
    loaded.load_state_dict(weights)
    assert_same(step(loaded, x, 4), expected)


MOMENTS = {
    "before anything is in place": ("revsurgeon.rewiring.selfcheck.reference_outputs", 1),
    "with one block in place": ("revsurgeon.rewiring.block.RewiredForward._find_position", 2),
    "with all blocks in place": ("revsurgeon.rewiring.selfcheck.check_and_start", 1),
    "in a forward": ("revsurgeon.reversible.chain.Chain.advance", 3),
    "while liveness is measured": ("revsurgeon.rewiring.selfcheck.set_coefficients", 2),
    "while the start is searched for": ("revsurgeon.rewiring.selfcheck.find_start", 1),
    "when all is done": ("revsurgeon.rewiring.rewire.plan_of", 1),
}
"""Where rewiring is interrupted: at which call of what."""


def rewire(network: nn.Module, x: torch.Tensor) -> None:
    """In exact arithmetic, so that gradients can be compared bit for bit."""
    rs.rewire(network, example_inputs=x, recipe=load_recipe("dr2-hold"), arithmetic="exact")


def interrupted(network: nn.Module, x: torch.Tensor, moment: str) -> bool:
    """Have a Ctrl-C at one of the `MOMENTS`; False where there are so few blocks that it never comes."""
    target, number = MOMENTS[moment]
    owner, _, name = target.rpartition(".")
    real = getattr(pkgutil.resolve_name(owner), name)
    calls = itertools.count(1)

    def fails(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    try:
        with mock.patch(target, fails):
            rewire(network, x)
    except KeyboardInterrupt:
        return True
    return False
