"""Equivalence: at (alpha, beta) = (1, 0) the network is the unrewired one, bit for bit."""

from __future__ import annotations

from torch import nn

from revsurgeon.checks.check import Check, Found
from revsurgeon.checks.first_difference import first_difference, plain
from revsurgeon.checks.report import Measurement
from revsurgeon.checks.steps import NETWORK_ERRORS, Ran, error, forward, refusal
from revsurgeon.checks.subject import Subject
from revsurgeon.checks.thresholds import REPEAT_FACTOR
from revsurgeon.reversible.coefficients import stored_activations
from revsurgeon.rewiring.measure import Arguments, at_coefficients


def run(subject: Subject) -> Found:
    """Compare outputs, buffers and random state with the unrewired network's; the threshold is 0.

    On several random inputs, on two batch sizes, in evaluation and in training mode, where both draw from
    the same random state. Of an artifact, the unrewired network is built apart and reads the weights
    itself. Only where the unrewired network does not repeat itself (a kernel that adds in another order each
    time), the threshold is what it differs by from itself, times four.
    """
    network, ran = subject.network, 0
    with subject.original() as original:
        noise = -1.0
        for training in (False, True):
            for seed, size, arguments in subject.batches():
                try:
                    with plain(network, original):
                        expected = forward(original, arguments, training=training, seed=seed)
                        if noise < 0:
                            again = forward(original, arguments, training=training, seed=seed)
                            noise = error(again.outputs, expected.outputs)
                except NETWORK_ERRORS as problem:
                    told = refusal(problem)
                    yield f"the unrewired network takes no batch of {size} in {_mode(training)} mode: {told}"
                    continue
                with at_coefficients(network, 1.0, 0.0), stored_activations(network):
                    found = forward(network, arguments, training=training, seed=seed)
                ran += 1
                what = f"output at (1, 0), {_mode(training)} mode, batch of {size}, seed {seed}"
                yield _measured(what, found, expected, noise, subject, original, arguments, training, seed)
        if not ran:
            yield Measurement(
                what="runs of the unrewired network on the example inputs that were missing",
                value=1.0,
                threshold=0.0,
                detail="it takes none of them; give others with --input",
            )


def _measured(
    what: str,
    found: Ran,
    expected: Ran,
    noise: float,
    subject: Subject,
    original: nn.Module,
    arguments: Arguments,
    training: bool,
    seed: int,
) -> Measurement:
    threshold = REPEAT_FACTOR * noise
    off, place, detail = error(found.outputs, expected.outputs), None, None
    if not off <= threshold:
        with at_coefficients(subject.network, 1.0, 0.0), stored_activations(subject.network):
            place = first_difference(subject.network, original, arguments, training=training, seed=seed)
    elif buffers := [n for n, b in expected.buffers.items() if error([found.buffers[n]], [b])]:
        off, place, detail = 1.0, buffers[0], "a buffer is not what it is in the unrewired network"
    elif not bool((found.random == expected.random).all()):
        off, detail = 1.0, "the random state behind it is not the unrewired network's"
    return Measurement(what=what, value=off, threshold=threshold, place=place, detail=detail)


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


CHECK = Check(run, quick=True, by_block=True)
