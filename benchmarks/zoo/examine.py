"""Rewire one network and check it: equality at (1, 0), liveness, and gradients in both arithmetics."""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils import _pytree as pytree

import revsurgeon as rs
from benchmarks.saved_bytes import count_kept
from benchmarks.zoo.catalogue import Entry
from benchmarks.zoo.networks import NotTriedError, Subject, call, make, tensors
from revsurgeon.anatomy import Anatomy, Reason
from revsurgeon.anatomy.probe import as_arguments
from revsurgeon.checks.shared import shared_uses
from revsurgeon.checks.thresholds import reordered
from revsurgeon.recipes import load_recipe
from revsurgeon.rewiring.measure import same_bits
from revsurgeon.rewiring.rewire import attach, specs_of
from revsurgeon.rewiring.selfcheck import check_and_start, reference_outputs

FLOAT_POINT = (0.3, 0.7)
EXACT_POINT = (0.9, 0.1)
LIPSCHITZ = 1e4
"""Stands for the constant with which a branch passes an error of its input on to its gradient.

Batch norm over the few values of these small inputs divides by deviations of a hundredth and less.
"""


@dataclass
class Step:
    """What one forward and backward gave, and left behind."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    random_state: torch.Tensor


def examine(entry: Entry) -> dict[str, Any]:
    """The row of one network.

    Returns:
        `status` is "converted", "left alone", "failed" or "not tried", with what belongs to it.
    """
    start = time.monotonic()
    row: dict[str, Any] = {"key": entry.key, "library": entry.library, "family": entry.family}
    try:
        subject = make(entry)
        row["input"] = subject.size
        row |= _rewired_and_checked(subject)
    except NotTriedError as reason:
        row |= {"status": "not tried", "detail": str(reason)}
    except Exception as error:  # noqa: BLE001 - whatever happens is this network's row
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename.rpartition('site-packages/')[2]}:{last.lineno}"
        row |= {"status": "failed", "detail": f"{type(error).__name__}: {_short(error)} [{where}]"}
    return {**row, "seconds": round(time.monotonic() - start, 1)}


def _rewired_and_checked(subject: Subject) -> dict[str, Any]:
    network = subject.network
    with torch.no_grad():
        expected = [_seeded(network.eval(), batch) for batch in subject.batches]
        again = _seeded(network, subject.batches[0])
    if not all(map(same_bits, again, expected[0])):
        raise NotTriedError("it does not compute the same twice in evaluation mode")
    stored_bytes = _bytes(subject)
    before = {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    anatomy = rs.inspect(network, subject.batches[0])
    if not anatomy.chains:
        return left_alone(anatomy)
    reference = reference_outputs(network, subject.batches[0])
    recipe = load_recipe("dr2-hold")
    attach(network, specs_of(anatomy, recipe))  # what `rs.rewire` does, without inspecting once more
    check_and_start(network, reference, recipe, "exact")
    found = {
        "status": "converted",
        "segments": [len(chain.segments) for chain in anatomy.chains],
        "share": round(anatomy.share, 4),
        "skips": sorted({s.skip for s in anatomy.segments}),
        "stored_bytes": stored_bytes,
        "skipped": dict(Counter(str(s.reason) for s in anatomy.skipped)),
    }
    after = {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    problems = [] if before == after else ["parameters are not the same objects under the same names"]
    problems += _outputs(subject, expected)
    problems += _exact(subject, found)
    problems += _float(subject, found)
    if problems:
        found |= {"status": "failed", "detail": "; ".join(problems)}
    return found


def left_alone(anatomy: Anatomy) -> dict[str, Any]:
    """The reason that most of the network's blocks have; one that says something, if there is one."""
    counts = Counter(s.reason for s in anatomy.skipped)
    vague = (Reason.NOT_CALLED, Reason.SHAPE_CHANGES, Reason.NO_RESIDUAL)
    telling = [r for r, _ in counts.most_common() if r not in vague]
    reason = telling[0] if telling else next((r for r in reversed(vague) if counts[r]), Reason.NO_RESIDUAL)
    details = Counter(f"{s.path}: {s.detail}" for s in anatomy.skipped if s.reason is reason)
    return {
        "status": "left alone",
        "reason": str(reason),
        "detail": _short(next(iter(details), "it has no repeated blocks")),
        "skipped": {str(r): n for r, n in counts.items()},
    }


def _outputs(subject: Subject, expected: list[list[torch.Tensor]]) -> list[str]:
    """Equality at (1, 0) on both batch sizes; at beta = .5 something else must come out."""
    problems = []
    rs.set_coefficients(subject.network, 1.0, 0.0)
    with torch.no_grad():
        for batch, wanted in zip(subject.batches, expected, strict=True):
            got = _seeded(subject.network.eval(), batch)
            if len(got) != len(wanted) or not all(map(same_bits, got, wanted)):
                problems.append("not equal at (1, 0)")
        for chain in rs.chains(subject.network):
            chain.set(1.0, 0.5)
        # With random weights a detector finds nothing at all, and a relu at the end may let nothing through;
        # the chains' own outputs were compared before.
        says_something = any(t.count_nonzero() for t in expected[-1])
        if says_something and all(
            map(same_bits, _seeded(subject.network, subject.batches[-1]), expected[-1])
        ):
            problems.append("beta = .5 changes nothing")
    return problems


def _seeded(network: nn.Module, batch: Any) -> list[torch.Tensor]:
    """Outputs; masked autoencoders draw their masks in evaluation mode too."""
    torch.manual_seed(3)
    return tensors(call(network, batch))


def _exact(subject: Subject, found: dict[str, Any]) -> list[str]:
    """In training mode with dropout on, everything is the stored network's, bit for bit."""
    network = subject.network
    rs.set_coefficients(network, *EXACT_POINT)
    for chain in rs.chains(network):
        chain.arithmetic = "exact"
    reversible, stored = step(network, subject.training), _stored_step(network, subject.training)
    found["reversible_bytes"] = _bytes(subject)
    problems = []
    if reversible.gradients.keys() != stored.gradients.keys():
        odd = sorted(reversible.gradients.keys() ^ stored.gradients.keys())
        problems.append(f"exact: gradients of other parameters: {odd[:3]}")
    else:
        wrong = [n for n, g in stored.gradients.items() if not same_bits(reversible.gradients[n], g)]
        order = (
            reordered(shared_uses(network, as_arguments(subject.training)), torch.float32) if wrong else 0.0
        )
        if wrong and not 0.0 < distance(reversible.gradients, stored.gradients) <= order:
            problems.append(f"exact: {len(wrong)} of {len(stored.gradients)} gradients differ: {wrong[:3]}")
    if not all(map(same_bits, reversible.outputs, stored.outputs)):
        problems.append("exact: outputs differ in training mode")
    if [n for n, b in stored.buffers.items() if not same_bits(reversible.buffers[n], b)]:
        problems.append("exact: buffers differ")
    if not torch.equal(reversible.random_state, stored.random_state):
        problems.append("exact: the random state differs")
    return problems


def _float(subject: Subject, found: dict[str, Any]) -> list[str]:
    """In float64, reversible gradients are the stored ones up to rounding."""
    network = subject.network.double()
    inputs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, subject.training
    )
    rs.set_coefficients(network, *FLOAT_POINT)
    for chain in rs.chains(network):
        chain.arithmetic = "float"
    try:
        stored = _stored_step(network, inputs)
    except (RuntimeError, ValueError, TypeError, rs.UnsupportedModelError) as error:
        found["float64_error"] = "-"
        found["float64"] = f"the network does not run in float64: {_short(error)}"
        return []
    if any(bool(g.isnan().any()) for g in stored.gradients.values()):
        found["float64_error"] = "-"
        found["float64"] = "the network's own gradients are not numbers in float64"
        return []
    error = distance(step(network, inputs).gradients, stored.gradients)
    # Each inverse step divides by beta and adds one rounding of G: n * eps / beta**n at a chain's start.
    longest = max(sum(chain.segments) for chain in rs.chains(network))
    bound = LIPSCHITZ * longest * torch.finfo(torch.float64).eps / FLOAT_POINT[1] ** longest
    found["float64_error"] = float(f"{error:.2g}")
    return [] if error < bound else [f"float64: gradient error {error:.2g} above {bound:.2g}"]


def _bytes(subject: Subject) -> int:
    """What one training forward keeps for its backward; running statistics are put back."""
    buffers = {name: buffer.clone() for name, buffer in subject.network.named_buffers()}
    saved = count_kept(subject.network.train(), subject.training, [], allocator=False).saved
    subject.network.eval()
    _put_back(subject.network, buffers)
    return saved


def _put_back(network: nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    for name, buffer in network.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])


def _stored_step(network: nn.Module, inputs: Any) -> Step:
    with rs.stored_activations(network):
        return step(network, inputs)


def step(network: nn.Module, inputs: Any) -> Step:
    """Forward and backward in training mode from one random state and from the same buffers."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train().zero_grad()
    torch.manual_seed(7)
    random.seed(7)
    numpy.random.seed(7)  # the masks of speech networks
    with contextlib.ExitStack() as stack:
        stack.callback(network.eval)
        outputs = [t for t in tensors(call(network, inputs))]
        loss = torch.zeros((), dtype=torch.float64)
        for output in outputs:
            if output.requires_grad:
                weights = torch.linspace(-1, 1.1, output.numel(), dtype=torch.float64).view(output.shape)
                loss = loss + (output.double() * weights).sum()
        loss.backward()
        gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        after = {name: buffer.clone() for name, buffer in network.named_buffers()}
    _put_back(network, buffers)
    network.zero_grad()
    return Step([o.detach() for o in outputs], gradients, after, torch.get_rng_state())


def distance(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """``||actual - expected|| / ||expected||`` over all parameters; infinite where other ones have one."""
    if actual.keys() != expected.keys():
        return float("inf")
    difference = sum(float((actual[n] - expected[n]).square().sum()) for n in expected)
    norm = sum(float(expected[n].square().sum()) for n in expected)
    return (difference / norm) ** 0.5 if norm else difference**0.5


def _short(error: object) -> str:
    return " ".join(str(error).split())[:300]
