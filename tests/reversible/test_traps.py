"""The traps of reversible backpropagation, each as a test with its name.

The networks are small and the arithmetic is exact unless said otherwise, so "the stored network's gradients"
means: the same bits.
"""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import revsurgeon as rs
from tests.gradients import assert_identical, assert_same_state, relative_error, step
from tests.models import Residual, Stack, residual_stack, seeded


def rewired(network: nn.Module, inputs: Any, beta: float = 0.1, arithmetic: str = "exact") -> nn.Module:
    rs.rewire(network, example_inputs=inputs, arithmetic=arithmetic)
    rs.set_coefficients(network, 1.0 - beta, beta)
    return network


def stack(depth: int = 4, dropout: float = 0.2, **options: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    network, inputs = seeded(lambda: residual_stack(depth, dropout))
    return rewired(network, inputs, **options).train(), inputs


def assert_reversible_equals_stored(network: nn.Module, inputs: Any) -> None:
    reversible = step(network, inputs)
    assert_identical(reversible, step(network, inputs, inside=rs.stored_activations(network)))
    assert any(float(g.abs().max()) > 0 for g in reversible.gradients.values())


def both(network: nn.Module, run: Callable[[], torch.Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The gradients that `run` (a forward that returns a loss) leaves, reversible and stored."""
    found = []
    for inside in (None, rs.stored_activations(network)):
        network.zero_grad()
        torch.manual_seed(0)
        if inside is None:
            run().backward()
        else:
            with inside:
                run().backward()
        found.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
    return found[0], found[1]


def assert_equal_gradients(found: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert any(float(g.abs().max()) > 0 for g in found[0].values())


# -- replay ----------------------------------------------------------------------------------


def test_dropout_replays_the_same_mask_and_leaves_the_stored_runs_random_state() -> None:
    assert_reversible_equals_stored(*stack(dropout=0.5))


def test_dropout_called_as_a_function_follows_the_training_flag() -> None:
    class Functional(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + F.dropout(self.linear(self.norm(x)), 0.5, training=self.training)

    network, inputs = seeded(lambda: (Stack(Functional(), Functional()), (torch.randn(3, 5, 8),)))
    rewired(network, inputs)
    for training in (True, False, True):
        network.train(training)
        assert_reversible_equals_stored(network, inputs)
    network.eval()
    assert torch.equal(network(*inputs), network(*inputs))


def test_batch_norm_moves_its_statistics_once() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.norm(self.conv(x))

    network = nn.Sequential(nn.Conv2d(4, 4, 1), Normed(), Normed())
    inputs = (torch.randn(3, 4, 6, 6),)
    rewired(network, inputs).train()
    counters = [m.num_batches_tracked for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert counters == [0, 0], "rewiring itself must not move them"
    assert_reversible_equals_stored(network, inputs)
    network(*inputs).sum().backward()
    assert counters == [1, 1]
    network[1].norm.eval()
    assert_reversible_equals_stored(network, inputs)
    network[1].norm.train()
    assert_reversible_equals_stored(network, inputs)


def test_a_module_whose_kernel_depends_on_the_grad_mode_repeats_its_bits() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            return x + self.attention(y, y, y, need_weights=False)[0]

    network, inputs = seeded(lambda: (Stack(*(Attention() for _ in range(4))), (torch.randn(3, 5, 8),)))
    rewired(network, inputs, beta=0.01)
    for training in (True, False):
        assert_reversible_equals_stored(network.train(training), inputs)


def test_an_lstm_in_a_branch_repeats_its_bits() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.lstm(x)[0]

    network, inputs = seeded(lambda: (Stack(Recurrent(), Recurrent(), Recurrent()), (torch.randn(3, 5, 8),)))
    assert_reversible_equals_stored(rewired(network, inputs, beta=0.01).train(), inputs)


def test_the_recomputation_runs_under_the_forwards_autocast() -> None:
    network, inputs = stack()
    results = []
    for inside in (None, rs.stored_activations(network)):
        network.zero_grad()
        torch.manual_seed(0)
        context = inside or torch.enable_grad()
        with context:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = network(*inputs).float().sum()
            loss.backward()  # outside of autocast, as in every training script
        results.append([p.grad.clone() for p in network.parameters()])
    assert all(map(torch.equal, *results))


def test_streams_are_never_low_precision_under_autocast() -> None:
    network, inputs = stack(arithmetic="float")
    seen = []
    network.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(*inputs)
    assert seen == [torch.float32]


def test_a_bfloat16_network_has_exact_gradients() -> None:
    network, inputs = seeded(lambda: residual_stack(4, 0.2))
    inputs = tuple(t.bfloat16() for t in inputs)
    rewired(network.bfloat16(), inputs).train()
    assert network(*inputs).dtype == torch.bfloat16
    assert_reversible_equals_stored(network, inputs)


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_and_size_one_strides_repeat_their_bits(batch: int) -> None:
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
            self.mix = nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.mix(F.gelu(self.conv(x)))

    network, inputs = seeded(
        lambda: (nn.Sequential(*(Conv() for _ in range(4))), (torch.randn(batch, 8, 5, 1),))
    )
    rewired(network, inputs, beta=0.01).train()
    assert_reversible_equals_stored(network, inputs)
    network.to(memory_format=torch.channels_last)
    assert_reversible_equals_stored(network, (inputs[0].to(memory_format=torch.channels_last),))


# -- what gets a gradient --------------------------------------------------------------------


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, *, scale: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = self.linear(x + bias)
        return x + (y if scale is None else y * scale)


class Biased(nn.Module):
    """A bias that every block shares and that itself needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.blocks = nn.ModuleList(Masked() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.table.tanh()
        for block in self.blocks:
            x = block(x, bias, scale=self.scale)
        return x


def test_tensor_arguments_get_their_gradients() -> None:
    network, inputs = seeded(lambda: (Biased(), (torch.randn(3, 5, 8),)))
    rewired(network, inputs)
    assert len(rs.chains(network)[0].blocks) == 4
    assert_equal_gradients(both(network, lambda: network(*inputs).square().sum()))
    assert float(network.table.grad.abs().max()) > 0
    assert float(network.scale.grad.abs().max()) > 0


def test_the_networks_input_gets_its_gradient() -> None:
    network, inputs = stack()
    gradients = []
    for inside in (torch.enable_grad(), rs.stored_activations(network)):
        x = inputs[0].clone().requires_grad_()
        torch.manual_seed(0)
        with inside:
            gradients.append(torch.autograd.grad(network(x).square().sum(), x)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("frozen", [("stem", "blocks.0", "blocks.1"), ("blocks.2",), ("head", "blocks.3")])
def test_frozen_parameters_stay_frozen_and_the_others_get_their_gradients(frozen: tuple[str, ...]) -> None:
    network, inputs = stack()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    assert_reversible_equals_stored(network, inputs)
    assert all((p.grad is None) == (not p.requires_grad) for p in network.parameters())


def test_gradients_by_some_parameters_only() -> None:
    network, inputs = stack()
    wanted = list(network.blocks[2].parameters())
    results = []
    for inside in (torch.enable_grad(), rs.stored_activations(network)):
        torch.manual_seed(0)
        with inside:
            results.append(torch.autograd.grad(network(*inputs).square().sum(), wanted))
    assert all(map(torch.equal, *results))


def test_lora_put_in_after_the_surgery_is_seen() -> None:
    class Lora(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.down = nn.Parameter(torch.randn(2, base.in_features))
            self.up = nn.Parameter(torch.randn(base.out_features, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + x @ self.down.T @ self.up.T

    network, inputs = stack()
    network.requires_grad_(False)
    for block in network.blocks:
        block.linear = Lora(block.linear)
    assert_reversible_equals_stored(network, inputs)
    trained = {n for n, p in network.named_parameters() if p.grad is not None}
    assert trained == {f"blocks.{i}.linear.{name}" for i in range(4) for name in ("down", "up")}


def test_a_hook_on_a_parameter_runs_once() -> None:
    network, inputs = stack()
    weight = network.blocks[1].linear.weight
    plain = step(network, inputs).gradients["blocks.1.linear.weight"]
    handle = weight.register_hook(lambda gradient: 2 * gradient)
    assert torch.equal(step(network, inputs).gradients["blocks.1.linear.weight"], 2 * plain)
    handle.remove()
    assert torch.equal(step(network, inputs).gradients["blocks.1.linear.weight"], plain)


def test_a_parametrized_weight_gets_its_gradient() -> None:
    network, inputs = stack()
    torch.nn.utils.parametrizations.weight_norm(network.blocks[1].linear)
    assert_reversible_equals_stored(network, inputs)


def test_a_tensor_that_is_neither_argument_nor_parameter_is_not_lost_silently() -> None:
    outside = torch.ones(8, requires_grad=True)

    class Closure(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.linear = Leaky()

    class Leaky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * outside

    network = Stack(Closure(), Closure())
    inputs = (torch.randn(3, 5, 8),)
    with pytest.raises(rs.ChainBrokenError, match="neither an argument nor a parameter"):
        rewired(network, inputs)(*inputs).sum().backward()


# -- how people run networks -----------------------------------------------------------------


def test_the_same_block_called_again_and_again() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Residual(dropout=0.2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(5):
                x = self.block(x)
            return x

    network, inputs = seeded(lambda: (Shared(), (torch.randn(3, 5, 8),)))
    rewired(network, inputs).train()
    assert rs.chains(network)[0].blocks == ("block",) * 5
    assert_reversible_equals_stored(network, inputs)


@pytest.mark.parametrize("output_too", [True, False])
def test_a_tap_in_the_middle_also_when_the_loss_uses_only_the_tap(output_too: bool) -> None:
    network, inputs = stack(depth=5)
    taps: list[torch.Tensor] = []
    network.blocks[2].register_forward_hook(lambda module, args, output: taps.append(output))

    def run() -> torch.Tensor:
        taps.clear()
        output = network(*inputs)
        loss = taps[0].square().sum()
        return loss + output.sum() if output_too else loss

    found = both(network, run)
    assert_equal_gradients(found)
    assert ("blocks.4.linear.weight" in found[0]) == output_too


def test_two_forwards_before_one_backward() -> None:
    network, inputs = stack()
    assert_equal_gradients(
        both(network, lambda: network(*inputs).sum() + network(2 * inputs[0]).square().sum())
    )


def test_retain_graph_allows_a_second_backward_and_without_it_the_second_is_refused() -> None:
    network, inputs = stack()
    once = step(network, inputs).gradients
    network.zero_grad()
    torch.manual_seed(0)
    output = network(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    loss = (output.double() * weights).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert all(torch.equal(p.grad, 2 * once[n]) for n, p in network.named_parameters())
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    output = network(*inputs)
    torch.autograd.grad(output.sum(), network.blocks[0].linear.weight)
    with pytest.raises((RuntimeError, rs.RevsurgeonError), match="second time"):
        torch.autograd.grad(output.sum(), network.blocks[0].linear.weight)


def test_gradient_accumulation() -> None:
    network, inputs = stack()

    def run() -> torch.Tensor:
        (network(*inputs).sum() / 2).backward()
        return network(inputs[0] * 3).square().sum() / 2

    assert_equal_gradients(both(network, run))


def test_double_backward_is_refused_in_words() -> None:
    network, inputs = stack()
    x = inputs[0].requires_grad_()
    with pytest.raises(rs.RevsurgeonError, match="cannot be differentiated twice"):
        torch.autograd.grad(network(x).sum(), x, create_graph=True)


def test_deepcopy_and_pickle_give_networks_of_their_own() -> None:
    network, inputs = stack()
    expected = step(network, inputs)
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(network), torch.load(buffer, weights_only=False)):
        assert_identical(step(twin, inputs), expected)
        rs.set_coefficients(twin, 0.5, 0.5)
        assert rs.get_coefficients(network) == (0.9, 0.1)
        with torch.no_grad():
            twin.blocks[0].linear.weight.zero_()
        assert_identical(step(network, inputs), expected)
        assert type(twin.blocks[0]) is Residual


def test_without_gradients_every_segment_runs_once_and_nothing_is_kept() -> None:
    network, inputs = stack()
    network.eval()
    calls: list[str] = []
    for name, block in network.blocks.named_children():
        block.linear.register_forward_hook(lambda module, args, output, name=name: calls.append(name))
    kept: list[torch.Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with torch.no_grad(), hooks:
        output = network(*inputs)
    with torch.inference_mode():
        assert torch.equal(network(*inputs), output)
    assert calls == ["0", "1", "2", "3"] * 2
    assert kept == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_one_segment_even_and_odd_chains(depth: int) -> None:
    assert_reversible_equals_stored(*stack(depth=depth))


def test_blocks_skipped_at_random() -> None:
    class Skipping(Stack):
        skip: frozenset[int] = frozenset()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for number, block in enumerate(self.blocks):
                if number not in self.skip:
                    x = block(x)
            return self.head(x)

    network, inputs = seeded(lambda: (Skipping(*(Residual() for _ in range(5))), (torch.randn(3, 5, 8),)))
    rewired(network, inputs).train()
    for skip in ({2}, {0}, {1, 3}, {4}, {0, 4}, set()):
        network.skip = frozenset(skip)
        assert_reversible_equals_stored(network, inputs)


def test_the_first_blocks_may_run_without_gradients() -> None:
    class Half(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self.blocks[1](self.blocks[0](self.stem(x)))
            return self.head(self.blocks[3](self.blocks[2](x)))

    network, inputs = seeded(
        lambda: (Half(*(Residual(dropout=0.2) for _ in range(4))), (torch.randn(3, 5, 8),))
    )
    rewired(network, inputs).train()
    assert len(rs.chains(network)[0].blocks) == 4
    assert_reversible_equals_stored(network, inputs)
    trained = {
        name.split(".")[1]
        for name, p in network.named_parameters()
        if "blocks" in name and p.grad is not None
    }
    assert trained == {"2", "3"}


def test_a_block_called_on_its_own_does_not_disturb_the_network() -> None:
    network, inputs = stack()
    expected = step(network, inputs)
    for _ in range(2):
        network.blocks[2](inputs[0])
        assert_identical(step(network, inputs), expected)


def test_an_output_that_is_changed_in_place_is_copied_first() -> None:
    class InPlace(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return self.head(x.relu_())

    network, inputs = seeded(lambda: (InPlace(Residual(), Residual()), (torch.randn(3, 5, 8),)))
    rewired(network, inputs)
    assert rs.chains(network)[0].copy_output
    for merge in ("last", "normalized"):
        rs.chains(network)[0].merge = merge
        assert_reversible_equals_stored(network, inputs)


def test_a_float_chain_whose_last_stream_is_changed_in_place_still_runs_backward() -> None:
    class InPlace(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return self.head(x.relu_())

    network, inputs = seeded(lambda: (InPlace(Residual(), Residual()), (torch.randn(3, 5, 8),)))
    rewired(network, inputs, arithmetic="float", beta=1.0)
    rs.chains(network)[0].merge = "last"  # x_N itself is what the network gets, and what the tape holds
    reversible, stored = step(network, inputs), step(network, inputs, inside=rs.stored_activations(network))
    assert torch.equal(reversible.output, stored.output)
    assert relative_error(reversible.gradients, stored.gradients) < 1e-5


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_backward_lets_go_of_the_streams_while_the_loss_lives_on(arithmetic: str) -> None:
    class Box:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    network, inputs = stack(arithmetic=arithmetic, beta=0.5)
    boxes: weakref.WeakSet[Box] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> Box:
        boxes.add(box := Box(tensor))
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        loss = network(*inputs).sum()
    assert len(boxes) > 0
    loss.backward()
    gc.collect()
    assert len(boxes) == 0
    assert loss.grad_fn is not None


def test_an_optimizer_step_between_forward_and_backward_is_refused() -> None:
    network, inputs = stack()
    loss = network(*inputs).sum()
    with torch.no_grad():
        network.blocks[3].linear.weight.add_(1)
    with pytest.raises(rs.ChainBrokenError, match="changed in place"):
        loss.backward()


def test_coefficients_that_change_between_forward_and_backward_do_not_matter() -> None:
    network, inputs = stack()
    expected = step(network, inputs).gradients
    network.zero_grad()
    torch.manual_seed(0)
    output = network(*inputs)
    rs.set_coefficients(network, 0.3, 0.7)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    (output.double() * weights).sum().backward()
    assert all(torch.equal(p.grad, expected[n]) for n, p in network.named_parameters())


def test_a_step_that_raises_in_the_middle_does_not_harm_the_next_one() -> None:
    network, inputs = stack()
    expected = step(network, inputs)

    def fail(*_: Any) -> None:
        raise MemoryError

    handle = network.blocks[2].linear.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        network(*inputs)
    handle.remove()
    assert_identical(step(network, inputs), expected)
    loss = network(*inputs).sum()
    handle = network.blocks[2].linear.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        loss.backward()
    handle.remove()
    assert_identical(step(network, inputs), expected)


def test_a_graph_that_is_dropped_without_backward_is_freed() -> None:
    network, inputs = stack()
    output = network(*inputs)
    node = weakref.ref(output)
    taken = [weakref.ref(network.blocks[1].linear.weight)]
    del output
    gc.collect()
    assert node() is None
    assert taken[0]() is not None
    assert rs.chains(network)[0]._runs == {}


def test_activation_checkpointing_around_the_whole_chain_works() -> None:
    network, inputs = stack()

    def run() -> torch.Tensor:
        return checkpoint(network, *inputs, use_reentrant=False).square().sum()

    assert_equal_gradients(both(network, run))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_of_single_blocks_is_refused(reentrant: bool) -> None:
    network, inputs = stack()
    x = network.stem(inputs[0])
    for block in network.blocks:
        x = checkpoint(block, x, use_reentrant=reentrant)
    with pytest.raises(rs.ChainBrokenError, match="checkpoint"):
        network.head(x).sum().backward()


def test_a_hook_that_replaces_a_blocks_output_is_refused() -> None:
    network, inputs = stack()
    network.blocks[1].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(rs.ChainBrokenError, match="was not handed what the block before it returned"):
        network(*inputs)


def test_training_at_beta_zero_is_refused_and_stored_training_is_not() -> None:
    network, inputs = stack()
    rs.set_coefficients(network, 1.0, 0.0)
    with pytest.raises(rs.RevsurgeonError, match="beta = 0"):
        network(*inputs)
    with rs.stored_activations(network):
        network(*inputs).sum().backward()
    assert network.blocks[0].linear.weight.grad is not None


@pytest.mark.parametrize(
    ("alpha", "beta"), [(1.1, 0.5), (-0.1, 0.5), (0.5, 2.0**-17), (0.5, -0.1), (0.5, 1.5)]
)
def test_coefficients_out_of_range_are_refused(alpha: float, beta: float) -> None:
    network, _ = stack()
    with pytest.raises(rs.RevsurgeonError, match="out of range"):
        rs.set_coefficients(network, alpha, beta)
    assert rs.get_coefficients(network) == (0.9, 0.1)


def test_a_segment_that_does_not_repeat_is_named() -> None:
    network, inputs = stack(depth=5, dropout=0.0)
    count = [0]

    def disturb(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        count[0] += 1
        return output * (1 + 1e-6 * count[0])

    network.blocks[2].linear.register_forward_hook(disturb)
    with pytest.raises(rs.ChainBrokenError, match=r"blocks\.2 \(segment 0\) did not repeat"):
        network(*inputs).sum().backward()


def test_streams_beyond_the_grid_are_refused() -> None:
    network, inputs = stack(dropout=0.0)
    for chain in rs.chains(network):
        chain.grid_bits = 40
    with pytest.raises(rs.RevsurgeonError, match="do not fit the grid"):
        network(1e6 * inputs[0])
    with pytest.raises(rs.RevsurgeonError, match="NaN"):
        network(torch.full_like(inputs[0], float("nan")))


def test_parents_see_the_blocks_as_they_were() -> None:
    network, inputs = seeded(lambda: residual_stack(3))
    names = list(network.state_dict())
    classes = [type(m) for m in network.modules()]
    rewired(network, inputs)
    assert list(network.state_dict()) == names
    assert [type(m) for m in network.modules()] == classes


def test_buffers_and_random_state_after_float_steps_are_the_stored_ones() -> None:
    network, inputs = stack(arithmetic="float", beta=0.7)
    assert_same_state(step(network, inputs), step(network, inputs, inside=rs.stored_activations(network)))


class SettingsBlock(nn.Module):
    """Its kernel is chosen by a global setting."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = PrecisionScale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class PrecisionScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * (1.0 if torch.get_float32_matmul_precision() == "highest" else 1.001)


def test_a_segment_is_rebuilt_under_the_global_settings_of_its_forward():
    torch.manual_seed(0)
    network = Stack(*(SettingsBlock() for _ in range(3)))
    inputs = torch.randn(2, 5, 8)
    rs.rewire(network, example_inputs=inputs, arithmetic="exact", recipe="dr2-hold").train()
    parameters = list(network.parameters())
    before = torch.get_float32_matmul_precision()
    expected = torch.autograd.grad(network(inputs).square().sum(), parameters)
    loss = network(inputs).square().sum()
    torch.set_float32_matmul_precision("medium")
    try:
        found = torch.autograd.grad(loss, parameters)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(map(torch.equal, found, expected))
