"""Ways of breaking the runtime: each is caught by the check that should, and it names the right segment."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from revsurgeon.checks import CHECKS
from revsurgeon.reversible import arithmetic, chain, record, replay, step
from revsurgeon.reversible.arithmetic import ExactArithmetic, FloatArithmetic, Streams
from revsurgeon.rewiring.block import PlannedSegment, RewiredForward
from tests.checks.conftest import RECIPE
from tests.checks.networks import tower
from tests.models import seeded

Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """One network for all: what is broken is put back, and tracing it once is enough."""
    made, inputs = seeded(tower)
    return rs.rewire(made, example_inputs=inputs, recipe=RECIPE)


INPUTS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def verify(network: nn.Module, only: list[str] | None = None) -> rs.Report:
    return rs.verify(network, INPUTS, seeds=1, only=only)


# -- the equations -------------------------------------------------------------------------------


def start_with(y_0: Callable[[ExactArithmetic, torch.Tensor], torch.Tensor]) -> Break:
    def change(patch: Patch) -> None:
        def start(self: ExactArithmetic, x: torch.Tensor) -> Streams:
            on_grid = self._on_grid(x)
            return Streams(on_grid, y_0(self, on_grid))

        patch.setattr(ExactArithmetic, "start", start)

    return change


def next_x_with(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Break:
    """Let another x come out of every coupling: of the right one, and the y that went into it."""
    right = ExactArithmetic.next_x

    def wrong(self: ExactArithmetic, y: torch.Tensor, g: torch.Tensor, reuse: bool = False) -> torch.Tensor:
        return change(right(self, y, g), y)

    return lambda patch: patch.setattr(ExactArithmetic, "next_x", wrong)


def unscaled_y(patch: Patch) -> None:
    right = ExactArithmetic.next_y

    def wrong(self: ExactArithmetic, x: torch.Tensor, keep: bool = True) -> Any:
        y, kept = right(self, x.clone(), keep)
        return x if keep else y, kept  # the start is right

    patch.setattr(ExactArithmetic, "next_y", wrong)


def merge_with(change: Callable[[ExactArithmetic, Streams], torch.Tensor]) -> Break:
    def merge(self: ExactArithmetic, streams: Streams, rule: str) -> torch.Tensor:
        return change(self, streams) * 2.0**-self.grid_bits

    return lambda patch: patch.setattr(ExactArithmetic, "merge", merge)


def add_with(change: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor], where: str = "") -> Break:
    """Let the segments whose name contains `where` add branch and skip in another way."""

    def residual_add(left: Any, right: Any, alpha: Any, skip: int, in_place: bool = False) -> torch.Tensor:
        branch, x = (right, left) if skip == 0 else (left, right)
        return left + right if alpha == 1.0 else change(branch, x, alpha)

    return in_segments(residual_add, where)


def in_segments(residual_add: Callable[..., torch.Tensor], where: str) -> Break:
    bind = PlannedSegment.bind

    def wrong(self: PlannedSegment, *args: Any) -> Any:
        call = bind(self, *args)
        if where in call.name and isinstance(call.function, FunctionType):
            own = {
                k: residual_add if k.endswith("residual_add") else v
                for k, v in call.function.__globals__.items()
            }
            call.function = FunctionType(call.function.__code__, own)
        return call

    return lambda patch: patch.setattr(PlannedSegment, "bind", wrong)


def in_half(patch: Patch) -> None:
    """The branch is handed a stream of low precision."""
    value = ExactArithmetic.value
    patch.setattr(ExactArithmetic, "value", lambda self, s, dtype: value(self, s, torch.float16).to(dtype))


def coefficients_stay(patch: Patch) -> None:
    """Changes of the coefficients do nothing."""
    patch.setattr(chain.Chain, "set", lambda self, alpha=None, beta=None: None)


def on_a_coarse_grid(patch: Patch) -> None:
    on_grid = ExactArithmetic._on_grid
    patch.setattr(ExactArithmetic, "_on_grid", lambda self, x: on_grid(self, x).div(2**16).round().mul(2**16))


EQUATIONS: dict[str, tuple[Break, str]] = {
    "y_0 is x_0, as the paper prints it": (start_with(lambda a, x: x.clone()), "early: its start: y_0"),
    "y_0 is zero": (start_with(lambda a, x: torch.zeros_like(x)), "early: its start: y_0"),
    "y_0 is beta times beta times x_0": (
        start_with(lambda a, x: torch.floor(x * a.beta * a.beta)),
        "early: its start: y_0",
    ),
    "y is not scaled by beta": (unscaled_y, r"early\.0 \(segment 0\): y"),
    "y is added twice": (next_x_with(lambda x, y: x + y), r"early\.0 \(segment 0\): x"),
    "y is not added": (next_x_with(lambda x, y: x - y), r"early\.0 \(segment 0\): x"),
    "x is one step of a coarse grid off": (on_a_coarse_grid, "early: its start: x_0"),
    "alpha is on the branch": (
        add_with(lambda branch, x, alpha: alpha * branch + x),
        r"early\.0 \(segment 0\): x",
    ),
    "alpha is on the branch, in one segment": (
        add_with(lambda branch, x, alpha: alpha * branch + x, "early.1 (segment 1)"),
        r"early\.1 \(segment 1\): x",
    ),
    "alpha is on both": (
        add_with(lambda branch, x, alpha: alpha * (branch + x), "late.0 (segment 0)"),
        r"late\.0 \(segment 0\): x",
    ),
    "alpha is ignored": (add_with(lambda branch, x, alpha: branch + x), r"early\.0 \(segment 0\): x"),
    "alpha is squared": (
        add_with(lambda branch, x, alpha: branch + alpha * alpha * x),
        r"early\.0 \(segment 0\): x",
    ),
    "the skip is dropped at alpha below 1": (
        add_with(lambda branch, x, alpha: branch.clone(), "early.0 (segment 1)"),
        r"early\.0 \(segment 1\): x",
    ),
    "the branch sees float16": (in_half, r"early\.0 \(segment 0\): what its branch saw"),
    "the streams are added up, not normalized": (
        merge_with(lambda a, s: s.x + s.y),
        "early: its end: output",
    ),
    "the other stream is returned": (merge_with(lambda a, s: s.y / a.beta), "early: its end: output"),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_forward_that_is_not_the_equations_is_caught(
    network: nn.Module, monkeypatch: Patch, name: str
) -> None:
    change, place = EQUATIONS[name]
    change(monkeypatch)
    assert_caught(network, "equations", place)


def test_y_0_as_the_paper_prints_it_does_not_lead_to_the_pretrained_network(
    network: nn.Module, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(FloatArithmetic, "start", lambda self, x: Streams(x, x))
    result = assert_caught(network, "convergence", None)
    (measurement,) = result.measurements
    assert measurement.value == pytest.approx(1, abs=0.1)  # its order is 0: the distance stays


# -- the pretrained network ----------------------------------------------------------------------


def dropping(where: str) -> Break:
    """The skip of one segment is not added, whatever alpha is."""
    return in_segments(
        lambda left, right, alpha, skip, in_place=False: right.clone() if skip == 0 else left.clone(), where
    )


def without_gamma(patch: Patch) -> None:
    """A LayerScale is ignored by the segment that has one."""
    bind = PlannedSegment.bind

    def wrong(self: PlannedSegment, block: nn.Module, *args: Any) -> Any:
        call = bind(self, block, *args)
        if call.name == "late.0 (segment 0)":
            function = call.function

            def ignoring(block: nn.Module, *rest: Any) -> torch.Tensor:
                kept = block._parameters["gamma"]
                block._parameters["gamma"] = nn.Parameter(torch.ones_like(kept))
                try:
                    return function(block, *rest)
                finally:
                    block._parameters["gamma"] = kept

            call.function = ignoring
        return call

    patch.setattr(PlannedSegment, "bind", wrong)


def turned_round(patch: Patch) -> None:
    """The segments of one block run in the other order."""
    plan = RewiredForward._plan

    def wrong(self: RewiredForward, *args: Any) -> Any:
        import dataclasses

        made = plan(self, *args)
        return dataclasses.replace(made, segments=made.segments[::-1]) if self.path == "early.1" else made

    patch.setattr(RewiredForward, "_plan", wrong)


def plain_alpha(patch: Patch) -> None:
    """At beta = 0 alpha is not quite the one that was set."""
    begin = chain.Chain._begin

    def wrong(self: chain.Chain, x: torch.Tensor) -> Any:
        run = begin(self, x)
        if run.how == "plain":
            run.alpha *= 1 - 2**-20
        return run

    patch.setattr(chain.Chain, "_begin", wrong)


def always_evaluating(patch: Patch) -> None:
    """Dropout does not draw in rewired blocks."""
    patch.setattr(nn.Dropout, "forward", lambda self, x: x)


EQUIVALENCE: dict[str, tuple[Break, str | None]] = {
    "a skip is dropped": (dropping("early.1 (segment 0)"), r"early\.1 \(segment 0\)"),
    "the last skip is dropped": (dropping("late.0 (segment 1)"), r"late\.0 \(segment 1\)"),
    "a LayerScale is ignored": (without_gamma, r"late\.0 \(segment 0\)"),
    "two segments in the other order": (turned_round, r"early\.1 \(segment 1\)"),
    "an alpha that is one part in a million off": (plain_alpha, r"early\.0 \(segment 0\)"),
    "coefficients that cannot be changed": (coefficients_stay, r"early\.0 \(segment 0\)"),
}


@pytest.mark.parametrize("name", EQUIVALENCE)
def test_a_network_that_is_not_the_pretrained_one_at_1_0_is_caught(
    network: nn.Module, monkeypatch: Patch, name: str
) -> None:
    change, place = EQUIVALENCE[name]
    change(monkeypatch)
    assert_caught(network, "equivalence", place)


# -- the way back --------------------------------------------------------------------------------


def again_with(broken: Callable[[replay.Replay], None]) -> Break:
    """Let the second run of every segment begin from something else than the first."""
    again = replay.Replay.again

    @contextlib.contextmanager
    def wrong(self: replay.Replay, device: torch.device) -> Iterator[None]:
        import copy

        forgetful = copy.copy(self)
        broken(forgetful)
        with again(forgetful, device):
            yield

    return lambda patch: patch.setattr(replay.Replay, "again", wrong)


def forget(**what: Any) -> Callable[[replay.Replay], None]:
    def broken(noted: replay.Replay) -> None:
        for name, value in what.items():
            assert hasattr(noted, name)
            setattr(noted, name, value)

    return broken


def in_evaluation(noted: replay.Replay) -> None:
    noted.attributes = [(o, n, False if n == "training" else value) for o, n, value in noted.attributes]


def noise(where: str) -> Break:
    """A kernel that does not repeat: one bit in a thousand, from a generator that nobody knows."""
    run = record.Record._run
    generator = torch.Generator().manual_seed(0)

    def wrong(self: record.Record, *args: Any) -> record.Values:
        g, sides = run(self, *args)
        off = torch.rand(g.shape, generator=generator) < 1e-2
        return g * (1 + off * 2**-22) if where in self.call.name else g, sides

    return lambda patch: patch.setattr(record.Record, "_run", wrong)


def zeros_for_remainders(patch: Patch) -> None:
    patch.setattr(arithmetic, "unpack_bits", lambda kept, bits, shape: torch.zeros(shape, dtype=torch.uint8))


def a_bit_less(patch: Patch) -> None:
    bits = ExactArithmetic.bits.fget
    patch.setattr(ExactArithmetic, "bits", property(lambda self: max(0, bits(self) - 1)))


def other_alpha(patch: Patch) -> None:
    """The recomputation takes another alpha than the forward."""
    leaves = record.Record._leaves

    def wrong(self: record.Record, x: torch.Tensor) -> Any:
        self.alpha = 0.5
        return leaves(self, x)

    patch.setattr(record.Record, "_leaves", wrong)


def inverse_without_beta(patch: Patch) -> None:
    previous = ExactArithmetic.previous_x

    def wrong(self: ExactArithmetic, y: torch.Tensor, kept: Any, stride: Any) -> torch.Tensor:
        return previous(self, y, kept, stride) + 1

    patch.setattr(ExactArithmetic, "previous_x", wrong)


def inverse_adds(patch: Patch) -> None:
    def wrong(self: ExactArithmetic, x: torch.Tensor, g: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(x + self._on_grid(g).double())

    patch.setattr(ExactArithmetic, "previous_y", wrong)


REVERSIBILITY: dict[str, tuple[Break, str]] = {
    "dropout is drawn anew": (again_with(forget(random=None)), r"early\.1 \(segment 0\)"),
    "the recomputation is in evaluation mode": (again_with(in_evaluation), r"early\.1 \(segment 1\)"),
    "autocast is forgotten": (again_with(forget(autocast=())), r"early\.1 \(segment 1\)"),
    "a segment that does not repeat": (noise("early.0 (segment 1)"), r"early\.0 \(segment 1\)"),
    "a segment of the second chain that does not repeat": (
        noise("late.0 (segment 0)"),
        r"late\.0 \(segment 0\)",
    ),
    "remainders are lost": (zeros_for_remainders, r"early\.1 \(segment 1\)"),
    "remainders have a bit less": (a_bit_less, r"early\.1 \(segment 1\)"),
    "the recomputation takes another alpha": (other_alpha, r"early\.1 \(segment 1\)"),
    "the inverse is one grid point off": (inverse_without_beta, r"early\.1 \(segment 1\)"),
    "the inverse adds G": (inverse_adds, r"early\.1 \(segment 1\)"),
}


@pytest.mark.parametrize("name", REVERSIBILITY)
def test_a_way_back_that_does_not_lead_back_is_caught(
    network: nn.Module, monkeypatch: Patch, name: str
) -> None:
    change, place = REVERSIBILITY[name]
    change(monkeypatch)
    assert_caught(network, "reversibility", place)


# -- gradients -----------------------------------------------------------------------------------


def without_beta(patch: Patch) -> None:
    """g(x_{i-1}) lacks beta * g(y_i), in both ways to backpropagate."""
    patch.setattr(step, "weighted_sum", lambda first, second, beta: second if first is None else first)


def merged_whole(patch: Patch) -> None:
    """The gradient of the merge is not divided by 1 + beta."""

    def backward(ctx: Any, *grads: Any) -> Any:
        return None, None, None, grads[0].to(ctx.dtype), grads[0].to(ctx.dtype)

    patch.setattr(step.Merge, "backward", staticmethod(backward))


def backward_with(change: Callable[[Any, list[Any]], None], where: str = "") -> Break:
    """Let the backward of segments return something else."""
    backward = step.Step.backward

    def wrong(ctx: Any, *grads: Any) -> Any:
        made = list(backward(ctx, *grads))
        if where in ctx.tape.records[ctx.index].call.name:
            change(ctx, made)
        return tuple(made)

    return lambda patch: patch.setattr(step.Step, "backward", staticmethod(wrong))


def set_to_none(place: int) -> Callable[[Any, list[Any]], None]:
    def change(ctx: Any, made: list[Any]) -> None:
        made[place] = None

    return change


def scaled(place: int, factor: float) -> Callable[[Any, list[Any]], None]:
    def change(ctx: Any, made: list[Any]) -> None:
        made[place] = made[place] * factor

    return change


def stored_without_y(patch: Patch) -> None:
    """Only stored activations are wrong: the yardstick itself."""

    def backward(ctx: Any, *grads: Any) -> Any:
        return None, grads[0].to(ctx.dtype), None, grads[0]

    patch.setattr(step.Couple, "backward", staticmethod(backward))


X, Y, PARAMETER = 2, 3, -1
"""Places among what the backward of a segment returns."""

GRADIENTS: dict[str, tuple[Break, str]] = {
    "the term of beta is missing in both ways": (without_beta, r"(early|late)\.\d \(segment \d\)"),
    "the merge passes on too much in both ways": (merged_whole, r"late\.0 \(segment [01]\)"),
    "the gradient of y is lost in one segment": (
        backward_with(set_to_none(Y), "early.1 (segment 0)"),
        r"early\.0 \(segment 0\)",  # where beta * g(y_i) was to arrive
    ),
    "the gradient of x is lost in one segment": (
        backward_with(set_to_none(X), "late.0 (segment 1)"),
        r"late\.0 \(segment 0\)",
    ),
    "the gradient of a parameter is lost": (
        backward_with(set_to_none(PARAMETER), "early.1 (segment 1)"),
        r"early\.1 \(segment 1\)",
    ),
    "the gradient of a parameter is an ulp off": (
        backward_with(scaled(PARAMETER, 1 + 2**-23), "early.0 (segment 0)"),
        r"early\.0 \(segment 0\)",
    ),
    "the gradient of x is a hundredth too large": (
        backward_with(scaled(X, 1.01), "early.1 (segment 1)"),
        r"early\.1 \(segment 0\)",
    ),
    "stored activations are wrong": (stored_without_y, r"(early|late)\.\d \(segment \d\)"),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_that_are_not_right_are_caught(network: nn.Module, monkeypatch: Patch, name: str) -> None:
    change, place = GRADIENTS[name]
    change(monkeypatch)
    assert_caught(network, "gradients", place)


STATE: dict[str, tuple[Break, str]] = {
    "batch norm moves twice": (again_with(forget(buffers=[], versions=[])), r"early\.0\.bn\..*"),
}


@pytest.mark.parametrize("name", STATE)
def test_a_step_that_leaves_another_state_behind_is_caught(
    network: nn.Module, monkeypatch: Patch, name: str
) -> None:
    change, place = STATE[name]
    change(monkeypatch)
    result = verify(network, ["gradients"]).check("gradients")
    wrong = {m.place for m in result.measurements if not m.passed and "leaves otherwise" in m.what}
    assert all(re.fullmatch(place, str(found)) for found in wrong)
    assert wrong


def test_a_random_state_that_moves_on_twice_is_caught(network: nn.Module, monkeypatch: Patch) -> None:
    restore = replay.RandomStates.restore
    calls = 0

    def every_other(self: replay.RandomStates) -> None:
        """The state of the forward is restored, the one behind it is not."""
        nonlocal calls
        calls += 1
        if calls % 2:
            restore(self)

    monkeypatch.setattr(replay.RandomStates, "restore", every_other)
    result = verify(network, ["gradients"]).check("gradients")
    wrong = {m.place for m in result.measurements if not m.passed and "leaves otherwise" in m.what}
    assert wrong == {"the random state"}


def test_gradients_that_go_wrong_once_weights_have_moved_are_caught_by_training(
    network: nn.Module, monkeypatch: Patch
) -> None:
    weight = network.get_parameter("early.0.mix.weight")
    version = weight._version

    def stale(ctx: Any, made: list[Any]) -> None:
        if weight._version > version:
            made[PARAMETER] = made[PARAMETER] * 1.01

    backward_with(stale, "early.0 (segment 1)")(monkeypatch)
    assert_caught(network, "training", r"early\.0 \(segment 1\)")


def test_streams_that_lose_their_memory_layout_are_caught(monkeypatch: Patch) -> None:
    """A stream that is laid out otherwise than what the branch returns, as behind a convolution."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Turned(), Turned())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(x.transpose(1, 2))

    network = rs.rewire(Net(), example_inputs=INPUTS, recipe=RECIPE)
    assert verify(network, ["reversibility"]).passed
    monkeypatch.setattr(arithmetic, "laid_out", lambda tensor, stride: tensor.contiguous())
    result = assert_caught(network, "reversibility", r"blocks\.\d \(segment 0\)")
    assert result.value is not None


def assert_caught(network: nn.Module, check: str, place: str | None) -> Any:
    report = verify(network, [check])
    result = report.check(check)
    assert result.verdict == "failed", result
    if place is not None:
        assert re.fullmatch(place, str(result.place)), (result.place, result.reason)
    return result


def test_the_network_that_all_this_was_done_to_is_as_it_was(network: nn.Module) -> None:
    report = verify(network)
    expected = {"integrity": "skipped", "provenance": "skipped"}
    assert {c.name: c.verdict for c in report.checks} == {
        name: expected.get(name, "passed") for name in CHECKS
    }
