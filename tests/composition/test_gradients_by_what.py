"""Gradients by parameters, inputs and streams; parts of a network frozen; more than one backward."""

from __future__ import annotations

import pytest
import torch

import revsurgeon as rs
from tests.composition.agreement import (
    assert_agree,
    assert_same,
    both_arithmetics,
    float_bound,
    gradients_of,
    loss_of,
    rewired,
    stack,
)
from tests.reversible.test_equations import by_the_equations


@both_arithmetics
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ["residual stack", "timm resnet"])
def test_gradients_by_inputs_and_parameters_in_one_call(arithmetic: str, training: bool, name: str) -> None:
    if name == "residual stack":
        network, inputs = stack(arithmetic, training=training)
    else:
        network, inputs = rewired(name, arithmetic, training=training)
    x = inputs[0].requires_grad_()
    wanted = {"x": x, **{n: p for n, p in network.named_parameters() if "2" in n}}

    def run() -> None:
        for leaf, gradient in zip(
            wanted.values(), torch.autograd.grad(loss_of(network, (x,)), list(wanted.values())), strict=True
        ):
            leaf.grad = gradient

    assert_agree(network, run, arithmetic, wanted=wanted)


@both_arithmetics
def test_gradients_by_the_input_alone_of_a_frozen_network(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    network.requires_grad_(False)
    x = inputs[0].requires_grad_()
    assert_agree(network, lambda: loss_of(network, (x,)).backward(), arithmetic, wanted={"x": x})


@both_arithmetics
def test_gradients_by_the_streams_between_blocks(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    taps: list[torch.Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, args, output: taps.append(output))

    def by_taps(stored: bool) -> dict[str, torch.Tensor | None]:
        taps.clear()
        torch.manual_seed(0)
        with rs.stored_activations(network) if stored else torch.enable_grad():
            return dict(zip("abcd", torch.autograd.grad(loss_of(network, inputs), taps), strict=True))

    assert_same(by_taps(False), by_taps(True), 0 if arithmetic == "exact" else float_bound(network))


@both_arithmetics
@pytest.mark.parametrize("frozen", ["stem blocks.0 blocks.1", "blocks.2", "blocks.3 head", "norm", "linear"])
def test_frozen_parts_get_no_gradient_and_the_others_the_stored_one(arithmetic: str, frozen: str) -> None:
    network, inputs = stack(arithmetic)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen.split()))
    found = assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)
    assert all((found[n] is None) == (not p.requires_grad) for n, p in network.named_parameters())


@both_arithmetics
def test_parts_that_are_thawed_between_steps(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    network.requires_grad_(False)
    for part in (network.head, *reversed(network.blocks), network.stem):
        part.requires_grad_(True)
        assert_agree(network, lambda: loss_of(network, inputs).backward(), arithmetic)


@both_arithmetics
def test_parameters_frozen_between_forward_and_backward(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)

    def run() -> None:
        network.requires_grad_(True)
        loss = loss_of(network, inputs)
        network.blocks[1].requires_grad_(False)
        loss.backward()
        assert not any(p.requires_grad for p in network.blocks[1].parameters())

    stored = assert_agree(network, run, arithmetic)
    assert stored["blocks.2.linear.weight"] is not None


@both_arithmetics
def test_parameters_thawed_between_forward_and_backward_get_no_gradient(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)

    def run() -> None:
        network.blocks[1].requires_grad_(False)
        loss = loss_of(network, inputs)
        network.requires_grad_(True)
        loss.backward()
        assert all(p.requires_grad for p in network.parameters())

    stored = assert_agree(network, run, arithmetic)
    assert {name for name, gradient in stored.items() if gradient is None} == {
        name for name in stored if name.startswith("blocks.1.")
    }


@both_arithmetics
def test_two_forwards_before_one_backward_and_one_loss_of_both(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)

    def run() -> None:
        (loss_of(network, inputs) * loss_of(network, (2 * inputs[0],))).backward()

    assert_agree(network, run, arithmetic)


@both_arithmetics
def test_gradients_that_accumulate(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)

    def run() -> None:
        for factor in (1.0, 2.0, 3.0):
            (loss_of(network, (factor * inputs[0],)) / 3).backward()

    assert_agree(network, run, arithmetic)


@both_arithmetics
def test_a_graph_that_is_retained_goes_backward_again(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)

    def run() -> None:
        loss = loss_of(network, inputs)
        loss.backward(retain_graph=True)
        (2 * loss).backward(retain_graph=True)
        loss.backward()

    assert_agree(network, run, arithmetic)


@both_arithmetics
@pytest.mark.parametrize("retain", [False, True], ids=["let go", "retained"])
def test_gradients_taken_in_hooks_while_the_chain_runs(arithmetic: str, retain: bool) -> None:
    network, inputs = stack(arithmetic)

    def run(retain: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        found: dict[str, torch.Tensor | None] = {}

        def take(block: torch.nn.Module, args: object, output: torch.Tensor) -> None:
            by = dict(block.named_parameters())
            gradients = torch.autograd.grad(output.square().sum(), list(by.values()), retain_graph=retain)
            place = len(found)
            found.update({f"{place} {name}": g for name, g in zip(by, gradients, strict=True)})

        network.zero_grad()
        handles = [block.register_forward_hook(take) for block in network.blocks[:-1]]  # the last one ends it
        torch.manual_seed(0)
        output = network(*inputs)
        for handle in handles:
            handle.remove()
        output.square().sum().backward()
        return output.detach(), found | {name: p.grad for name, p in network.named_parameters()}

    with rs.stored_activations(network):
        output, expected = run(retain=True)  # freed, they could not go backward a second time
    found_output, found = run(retain)
    assert torch.equal(found_output, output)
    assert_same(found, expected, 0 if arithmetic == "exact" else float_bound(network))


@both_arithmetics
def test_two_losses_of_one_forward_go_backward_one_after_the_other(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    taps: list[torch.Tensor] = []
    network.blocks[1].register_forward_hook(lambda module, args, output: taps.append(output))
    for order in (1, -1):

        def run(order: int = order) -> None:
            taps.clear()
            output = network(*inputs)
            losses = [taps[0].square().mean(), output.square().mean()][::order]
            losses[0].backward(retain_graph=True)
            losses[1].backward()

        assert_agree(network, run, arithmetic)


@both_arithmetics
def test_a_tap_whose_way_back_leads_through_changed_parameters_is_refused(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    taps: list[torch.Tensor] = []
    network.blocks[0].register_forward_hook(lambda module, args, output: taps.append(output))
    network(*inputs)
    with torch.no_grad():
        network.blocks[2].linear.weight.mul_(1.5)  # the way back to the tap leads through it
    with pytest.raises(rs.ChainBrokenError, match="changed in place between forward and backward"):
        taps[0].square().mean().backward()


@both_arithmetics
def test_jacobians_row_by_row_and_batched(arithmetic: str) -> None:
    network, inputs = stack(arithmetic, depth=3)
    network.eval()
    x = inputs[0].requires_grad_()

    def rows(batched: bool, stored: bool) -> torch.Tensor:
        with rs.stored_activations(network) if stored else torch.enable_grad():
            output = network(x).sum((0, 1))
            if batched:
                return torch.autograd.grad(output, x, torch.eye(8), is_grads_batched=True)[0]
            return torch.stack(
                [torch.autograd.grad(output, x, row, retain_graph=True)[0] for row in torch.eye(8)]
            )

    for batched in (False, True):
        found, expected = rows(batched, stored=False), rows(batched, stored=True)
        bound = 0 if arithmetic == "exact" else float_bound(network)
        assert_same({"x": found}, {"x": expected}, bound)
    jacobian = torch.autograd.functional.jacobian(lambda y: network(y).sum((0, 1)), inputs[0].detach())
    assert torch.equal(jacobian, rows(batched=False, stored=False))


@both_arithmetics
def test_a_second_derivative_is_refused(arithmetic: str) -> None:
    network, inputs = stack(arithmetic)
    x = inputs[0].requires_grad_()
    with pytest.raises(rs.RevsurgeonError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss_of(network, (x,)), x, create_graph=True)


@both_arithmetics
def test_second_derivatives_of_stored_activations_are_those_of_the_equations(arithmetic: str) -> None:
    network, inputs = stack(arithmetic, depth=3, dropout=0.0)
    network.double()
    beta = rs.chains(network)[0].beta = 0.125  # a multiple of 2**-16
    rs.set_coefficients(network, 0.875)
    x = inputs[0].double().requires_grad_()

    def penalty(output: torch.Tensor) -> list[torch.Tensor]:
        (by_input,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(by_input.square().sum(), list(network.parameters()), allow_unused=True)

    with rs.stored_activations(network):
        found = penalty(network(x))
    expected = penalty(by_the_equations(network, x, 0.875, beta, rs.chains(network)[0].merge))
    # The grid rounds what the derivatives are taken at, and the derivatives themselves hardly bend.
    bound = 1e3 * (2.0 ** -rs.chains(network)[0].grid_bits if arithmetic == "exact" else 1e-15)
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual is None) == (wanted is None)
        if wanted is not None:
            assert float((actual - wanted).norm()) <= bound * float(wanted.norm())


def test_gradients_of_a_network_at_beta_zero_are_those_of_the_source() -> None:
    network, inputs = stack("float", training=False)
    rs.set_coefficients(network, 1.0, 0.0)
    found = gradients_of(network, lambda: loss_of(network, inputs).backward())
    x = network.stem(inputs[0])
    for block in network.blocks:
        x = x + block.dropout(block.linear(block.norm(x)))
    network.zero_grad()
    network.head(x).float().square().mean().backward()
    assert all(torch.equal(p.grad, found[n]) for n, p in network.named_parameters())
