"""Hooks on blocks, inside blocks and on parameters, and what the libraries return through them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.composition.agreement import (
    assert_agree,
    both_arithmetics,
    float_bound,
    gradients_of,
    loss_of,
    rewired,
    rewired_from,
    stack,
)
from tests.gradients import relative_error
from tests.usage.networks import Twice


def seen_by(
    network: nn.Module, run: Callable[[], Any], seen: list[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What hooks put into `seen`, reversible and stored."""
    found = []
    for stored in (False, True):
        seen.clear()
        gradients_of(network, run, stored=stored)
        found.append([tensor.detach().clone() for tensor in seen])
    return found[0], found[1]


@both_arithmetics
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_forward_hooks_on_blocks_see_the_stream_x(arithmetic: str, training: bool) -> None:
    network, inputs = stack(arithmetic, training=training)
    seen: list[torch.Tensor] = []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        block.register_forward_hook(lambda module, args, output: seen.append(output))
    reversible, stored = seen_by(network, lambda: loss_of(network, inputs).backward(), seen)
    assert len(reversible) == len(stored) == 8, "once a block, not again in the backward pass"
    assert all(map(torch.equal, reversible, stored))
    assert all(torch.equal(reversible[2 * i], reversible[2 * i - 1]) for i in range(1, 4))


@both_arithmetics
def test_a_loss_on_what_forward_hooks_took(arithmetic: str) -> None:
    network, inputs = stack(arithmetic, depth=5)
    taps: list[torch.Tensor] = []
    for number in (0, 2, 4):
        network.blocks[number].register_forward_hook(lambda module, args, output: taps.append(output))
    for chosen in ([0], [1], [2], [0, 1], [0, 1, 2]):

        def run(chosen: list[int] = chosen) -> None:
            taps.clear()
            network(*inputs)
            sum(taps[i].square().mean() for i in chosen).backward()

        assert_agree(network, run, arithmetic)


@both_arithmetics
def test_backward_hooks_on_blocks_and_inside_see_the_stored_gradients_once(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    seen: list[torch.Tensor] = []
    for module in (network.blocks[1], network.blocks[2].linear, network.blocks[3]):
        module.register_full_backward_hook(lambda module, into, out: seen.extend([*into, *out]))
        module.register_full_backward_pre_hook(lambda module, out: seen.extend(out))
    reversible, stored = seen_by(network, lambda: loss_of(network, inputs).backward(), seen)
    assert len(reversible) == len(stored) == 9
    for found, expected in zip(reversible, stored, strict=True):
        if arithmetic == "exact":
            assert torch.equal(found, expected)
        else:
            assert float((found - expected).norm() / expected.norm()) <= float_bound(network)
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
def test_backward_hooks_may_change_gradients(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    plain = gradients_of(network, lambda: loss_of(network, inputs).backward())
    for module in (network.blocks[1], network.blocks[2].linear):
        module.register_full_backward_hook(lambda module, into, out: (3 * into[0],))
    changed = assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    assert not torch.equal(changed["stem.weight"], plain["stem.weight"])


@both_arithmetics
def test_tensor_hooks_on_what_a_block_returns(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    seen: list[torch.Tensor] = []

    def watch(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: seen.append(gradient))
        output.retain_grad()

    for block in network.blocks:
        block.register_forward_hook(watch)
    reversible, stored = seen_by(network, lambda: loss_of(network, inputs).backward(), seen)
    assert len(reversible) == 4
    found = {str(i): g for i, g in enumerate(reversible)}
    assert relative_error(found, {str(i): g for i, g in enumerate(stored)}) <= float_bound(network)
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
def test_hooks_on_parameters_run_once_and_their_result_counts(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    calls: list[str] = []
    weight = network.blocks[1].linear.weight
    weight.register_hook(lambda gradient: calls.append("hook") or 2 * gradient)
    weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    gradients_of(network, lambda: loss_of(network, inputs).backward())
    assert calls == ["hook", "accumulated"]
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
def test_a_hook_may_replace_what_enters_and_leaves_a_chain(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    plain = network.eval()(*inputs)
    network.train()
    network.blocks[0].register_forward_pre_hook(lambda module, args: (3 * args[0],))
    network.blocks[-1].register_forward_hook(lambda module, args, output: output.tanh())
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    assert not torch.equal(network.eval()(*inputs), plain)


REPLACING: dict[str, Callable[[nn.Module], Any]] = {
    "forward hook": lambda block: block.register_forward_hook(lambda module, args, output: 2 * output),
    "copying hook": lambda block: block.register_forward_hook(lambda module, args, output: output.clone()),
    "in-place hook": lambda block: block.register_forward_hook(lambda module, args, output: output.mul_(2)),
    "pre-hook": lambda block: block.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
}


@both_arithmetics
@pytest.mark.parametrize("kind", REPLACING)
@pytest.mark.parametrize("gradients", [True, False], ids=["training", "without gradients"])
def test_a_hook_that_replaces_the_stream_inside_a_chain_is_refused(
    arithmetic: str, kind: str, gradients: bool
) -> None:
    network, inputs = stack(arithmetic)
    REPLACING[kind](network.blocks[1])
    broken = pytest.raises(rs.ChainBrokenError, match="was not handed what the block before")
    with torch.set_grad_enabled(gradients), broken:
        network(*inputs)


@both_arithmetics
@pytest.mark.parametrize("stored", [False, True], ids=["reversible", "stored"])
def test_a_write_to_the_stream_is_refused_where_the_chain_might_begin_anew(
    arithmetic: str, stored: bool
) -> None:
    network, inputs = rewired_from(Twice, arithmetic)
    network.blocks[-1].register_forward_hook(lambda module, args, output: output.mul_(0.5))
    refused = pytest.raises(rs.ChainBrokenError, match="was not handed what the block before")
    with rs.stored_activations(network) if stored else contextlib.nullcontext(), refused:
        network(*inputs)


@both_arithmetics
def test_a_gradient_taken_behind_a_write_to_the_stream_is_right_or_refused(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    taken: list[tuple[torch.Tensor, ...]] = []

    def write(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        output.mul_(0.5)
        taken.append(torch.autograd.grad(output.square().sum(), list(module.parameters())))

    network.eval().blocks[1].register_forward_hook(write)
    with rs.stored_activations(network), pytest.raises(rs.ChainBrokenError, match="was not handed"):
        network(*inputs)
    # In float arithmetic what a block returns is the stream itself.
    match = "was changed in place before this gradient" if arithmetic == "float" else "was not handed"
    with pytest.raises(rs.ChainBrokenError, match=match):
        network(*inputs)
    expected, *found = taken
    assert all(map(torch.equal, found[0], expected)) if arithmetic == "exact" else not found


@both_arithmetics
def test_a_hook_inside_a_segment_that_adds_a_trained_tensor_is_refused_at_any_step(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    loss_of(network, inputs).backward()  # a first step without the hook
    prompt = torch.ones(8, requires_grad=True)
    network.blocks[1].linear.register_forward_hook(lambda module, args, output: output * prompt)
    loss = loss_of(network, inputs)
    with pytest.raises(rs.ChainBrokenError, match="neither an argument nor a parameter"):
        loss.backward()
    with rs.stored_activations(network):
        loss_of(network, inputs).backward()
    assert prompt.grad is not None


@both_arithmetics
def test_the_stream_that_a_hook_takes_inside_a_segment_leads_its_gradient_on(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    taken: list[torch.Tensor] = []
    network.blocks[2].norm.register_forward_pre_hook(lambda module, args: taken.append(args[0]))

    def run() -> None:
        taken.clear()
        output = network(*inputs)
        (taken[0].square().mean() + output.square().mean()).backward()

    reversible = gradients_of(network, run)
    stored = gradients_of(network, run, stored=True)
    assert reversible.keys() == stored.keys()
    # The three gradients of x meet in another order than in the stored network: one rounding more a block.
    assert relative_error(reversible, stored) <= float_bound(network)


@both_arithmetics
def test_a_loss_on_what_a_segment_computes_inside_is_refused(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    taken: list[torch.Tensor] = []
    network.blocks[2].linear.register_forward_hook(lambda module, args, output: taken.append(output))
    network(*inputs)
    with pytest.raises(rs.RevsurgeonError, match="from inside a segment"):
        taken[0].square().mean().backward()
    taken.clear()
    with rs.stored_activations(network):
        network(*inputs)
        taken[0].square().mean().backward()


@both_arithmetics
def test_hooks_inside_a_segment_run_again_in_the_recomputation_as_with_checkpointing(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    calls: list[bool] = []
    network.blocks[2].linear.register_forward_hook(
        lambda module, args, output: calls.append(torch._C._current_graph_task_id() != -1)
    )
    loss = loss_of(network, inputs)
    assert calls == [False]
    loss.backward()
    assert calls == [False, True]


@both_arithmetics
def test_attention_weights_are_returned_and_a_loss_on_them_is_refused(arithmetic: str) -> None:
    network, inputs = rewired("transformers bert", arithmetic)
    network.set_attn_implementation("eager")
    output = network(**inputs, output_attentions=True)
    with torch.no_grad(), rs.stored_activations(network):
        assert len(output.attentions) == 3
    with pytest.raises(rs.RevsurgeonError, match="attention weights"):
        sum(weights.square().sum() for weights in output.attentions).backward()
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
def test_hooks_on_modules_whose_code_is_inlined_are_refused(arithmetic: str) -> None:
    network, inputs = rewired("transformers bert", arithmetic)
    loss_of(network, inputs).backward()
    handle = network.bert.encoder.layer[1].output.register_forward_hook(lambda *_: None)
    with pytest.raises(rs.UnsupportedModelError, match="'output' has hooks, which would not run"):
        network(**inputs)
    handle.remove()
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
@pytest.mark.parametrize("name", ["transformers vit", "transformers bert"])
def test_hidden_states_of_transformers_are_the_streams(arithmetic: str, name: str) -> None:
    network, inputs = rewired(name, arithmetic)
    states: list[torch.Tensor] = []

    def run() -> None:
        output = network(**inputs, output_hidden_states=True)
        states.extend(output.hidden_states)
        sum((i + 1) * h.square().mean() for i, h in enumerate(output.hidden_states)).backward()

    reversible, stored = seen_by(network, run, states)
    assert len(reversible) == len(stored) == 4
    assert all(map(torch.equal, reversible, stored))
    assert_agree(network, run, arithmetic)


@both_arithmetics
@pytest.mark.parametrize("early", [False, True], ids=["to the end", "stopping early"])
def test_intermediate_features_of_timm(arithmetic: str, early: bool) -> None:
    network, inputs = rewired("timm vit", arithmetic)

    def run() -> None:
        found = network.forward_intermediates(
            *inputs, indices=[0, 1], stop_early=early, intermediates_only=True
        )
        sum(feature.square().mean() for feature in found).backward()

    assert_agree(network, run, arithmetic)
    assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
def test_feature_extractors_of_timm(arithmetic: str) -> None:
    import timm

    def make() -> nn.Module:
        options = {"layers": (2, 2, 2, 2), "channels": (8, 8, 8, 8)}
        return timm.create_model("resnet26", features_only=True, **options)

    network, inputs = rewired_from(make, arithmetic, torch.randn(2, 3, 64, 64))
    network.eval()

    def run() -> None:
        sum(feature.square().mean() for feature in network(*inputs)).backward()

    assert_agree(network, run, arithmetic)
