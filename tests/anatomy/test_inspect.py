"""Residual structure is found by the dataflow, whatever the code looks like, and refusals say why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import revsurgeon as rs
from tests.gradients import assert_identical, step
from tests.models import NETWORKS, Residual, Stack, residual_stack, seeded

X = torch.randn(3, 5, 8)


class Base(nn.Module):
    """A norm and two layers for blocks to combine."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.f, self.g = nn.Linear(8, 8), nn.Linear(8, 8)


class PreNorm(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.f(self.norm(x))
        return x + self.g(self.norm2(x))


class PostNorm(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x + self.f(x))
        return self.norm2(self.g(x) + x)


class InPlace(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        x += self.f(x)
        return F.relu_(self.g(x).add_(x))


class InPlaceOnInput(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        shortcut = x
        y = self.f(F.relu(x))
        y += shortcut
        return y


class ReluOnInput(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        F.relu_(x)
        return self.f(x) + x


class Parallel(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.f(y) + self.g(y)


class Scaled(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.scale * x + self.f(self.norm(x))
        return x + 0.1 * self.g(x)


class Fused(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x, self.gamma, self.f(self.norm(x)))


class AddInside(nn.Module):
    """As Hugging Face does it: the addition is in a submodule that gets both."""

    class Output(Base):
        def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.g(y) + x)

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)
        self.output = AddInside.Output()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (self.output(self.f(x), x), None)


class OtherLayout(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        x = x + self.f(self.norm(x))
        x = x.reshape(b * n, c)
        x = x + self.g(x)
        return x.view(b, n, c)


class Decides(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.pad(x, (0, 0, 0, 1)) if x.shape[1] % 2 else x
        y = self.f(y)
        if x.shape[1] % 2:
            y = y[:, :-1]
        return x + y


class WritesInto(Base):
    """A buffer that is filled by index assignment, and noise that is scaled in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:, 1:] = self.f(x)[:, :-1]
        noise = x.new_empty(x.shape[0], 1, 1).bernoulli_(0.5)
        noise.div_(0.5)
        return x + y * noise


class ListWriter(nn.Module):
    """A submodule that appends to a list it is handed, as dense layers do."""

    class Appends(Base):
        def forward(self, values: list[torch.Tensor]) -> None:
            values.append(self.f(self.norm(values[-1])))

    def __init__(self) -> None:
        super().__init__()
        self.appends = ListWriter.Appends()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        self.appends(values)
        return values[0] + values[-1]


class ScaleInside(Base):
    """A scaled skip whose factor is in a submodule, and a cache that the forward fills."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.full((8,), 0.5))
            self.cache: dict[str, torch.Tensor] = {}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if "factor" not in self.cache:
                self.cache["factor"] = self.factor.view(1, 8)
            return x * (self.factor.view(1, 8) if self.training else self.cache["factor"])

        def train(self, mode: bool = True) -> ScaleInside.Scale:
            self.cache = {}
            return super().train(mode)

    def __init__(self) -> None:
        super().__init__()
        self.scale = ScaleInside.Scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(x) + self.f(self.norm(x))


class Tupled(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)[0]
        return self.head(x)


# name: (block, network around it, kinds of skip that each block must have)
ACCEPTED: dict[str, tuple[Callable[[], nn.Module], Any, list[str]]] = {
    "pre-norm": (PreNorm, Stack, ["identity", "identity"]),
    "post-norm": (PostNorm, Stack, ["identity", "identity"]),
    "in place": (InPlace, Stack, ["identity", "identity"]),
    "in place on a copy of the input": (InPlaceOnInput, Stack, ["identity"]),
    "relu in place on the input": (ReluOnInput, Stack, ["identity"]),
    "parallel branches": (Parallel, Stack, ["identity"]),
    "scaled skip": (Scaled, Stack, ["scaled", "identity"]),
    "addcmul": (Fused, Stack, ["identity"]),
    "a list that a submodule writes into": (ListWriter, Stack, ["identity"]),
    "a scaled skip in a submodule, and a cache": (ScaleInside, Stack, ["scaled"]),
    "addition in a submodule, tuple output": (AddInside, Tupled, ["identity"]),
    "another layout": (OtherLayout, Stack, ["identity", "identity"]),
    "decided by a size": (Decides, Stack, ["identity"]),
    "writes into buffers": (WritesInto, Stack, ["identity"]),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_way_to_write_a_residual_block_is_found_and_reversed(name: str) -> None:
    block, around, skips = ACCEPTED[name]
    network, inputs = seeded(lambda: (around(*(block() for _ in range(3))), (torch.randn(3, 5, 8),)))
    (chain,) = rs.inspect(network, inputs).chains
    assert [[s.skip for s in b.segments] for b in chain.blocks] == [skips] * 3
    with torch.no_grad():
        expected = [network(x) for x in (inputs[0], inputs[0][:1], inputs[0][:, :4])]
    rs.rewire(network, example_inputs=inputs, arithmetic="exact")
    for alpha, beta in ((0.9, 0.1), (0.3, 0.7), (0.0, 1.0)):
        rs.set_coefficients(network, alpha, beta)
        assert_identical(step(network, inputs), step(network, inputs, inside=rs.stored_activations(network)))
    rs.set_coefficients(network, 1.0, 0.0)
    with torch.no_grad():
        outputs = [network(x) for x in (inputs[0], inputs[0][:1], inputs[0][:, :4])]
    if name != "writes into buffers":  # that one is random
        assert all(map(torch.equal, outputs, expected))


# -- refusals --------------------------------------------------------------------------------


class Concatenates(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., :4], self.f(x)[..., 4:]], dim=-1)


class Projects(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(x) + self.g(self.norm(x))


class NoSkip(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.g(F.relu(self.f(x)))


class ReadsData(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x) if x.sum() > -1e9 else x


class ReturnsMore(Base):
    """A second value that both residual modules take part in."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.f(x)
        x = x + y
        z = self.g(x)
        return x + z, (y * z).mean()


class OnlyInTraining(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.f(x)
        return x + self.g(x) if self.training else x


class Cached(Base):
    def forward(self, x: torch.Tensor, cache: Any = None) -> torch.Tensor:
        return x + self.f(x)


class WithCache(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cache = object()
        for block in self.blocks:
            x = block(x, cache)
        return self.head(x)


class Calls(Base):
    """Calls a module for its effect only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.g(x)
        return x + self.f(x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "concatenation": (Concatenates, Stack),
    "no-identity-skip": (Projects, Stack),
    "no-residual": (NoSkip, Stack),
    "untraceable": (ReadsData, Stack),
    "side-output": (ReturnsMore, Tupled),
    "modes-differ": (OnlyInTraining, Stack),
    "opaque-argument": (Cached, WithCache),
    "side-effect": (Calls, Stack),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_rewired_is_refused_with_its_reason(reason: str) -> None:
    block, around = REFUSED[reason]
    network = around(*(block() for _ in range(3)))
    anatomy = rs.inspect(network, X)
    assert anatomy.chains == ()
    assert [(s.path, s.reason) for s in anatomy.skipped] == [(f"blocks.{i}", reason) for i in range(3)]
    before = {name: dict(module.__dict__) for name, module in network.named_modules()}
    with pytest.raises(rs.UnsupportedModelError, match=reason):
        rs.rewire(network, example_inputs=X)
    assert {name: dict(module.__dict__) for name, module in network.named_modules()} == before


def test_a_block_in_two_different_runs_is_left_alone_and_the_others_are_not() -> None:
    class Crossing(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b, c = self.blocks
            return self.head(c(b(a(x))).relu() + b(c(x.tanh())))

    network = Crossing(PreNorm(), PreNorm(), PreNorm())
    anatomy = rs.inspect(network, X)
    assert [[b.path for b in chain.blocks] for chain in anatomy.chains] == [["blocks.0"]]
    assert {(s.path, s.reason) for s in anatomy.skipped} == {
        ("blocks.1", "called-twice"),
        ("blocks.2", "called-twice"),
    }


def test_a_network_that_runs_twice_in_one_forward_is_one_chain() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower, _ = residual_stack(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tower(x) - self.tower(x.flip(0))

    network, inputs = seeded(lambda: (Siamese(), (torch.randn(3, 5, 8),)))
    assert len(rs.inspect(network, inputs).chains) == 1
    rs.rewire(network, example_inputs=inputs, arithmetic="exact")
    assert_identical(step(network, inputs), step(network, inputs, inside=rs.stored_activations(network)))


def test_blocks_that_are_not_reached_are_said_to_be() -> None:
    class Partly(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.blocks[1](self.blocks[0](x)))

    anatomy = rs.inspect(Partly(PreNorm(), PreNorm(), PreNorm()), X)
    assert [(s.path, s.reason) for s in anatomy.skipped] == [("blocks.2", "not-called")]


def test_work_between_two_blocks_ends_the_chain() -> None:
    class Between(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b, c, d = self.blocks
            return self.head(d(c(b(a(x)) + 1)))

    chains = rs.inspect(Between(*(PreNorm() for _ in range(4))), X).chains
    assert [[b.path for b in chain.blocks] for chain in chains] == [
        ["blocks.0", "blocks.1"],
        ["blocks.2", "blocks.3"],
    ]


def test_a_change_in_place_between_two_blocks_ends_the_chain() -> None:
    class Between(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.blocks
            return self.head(b(a(x).add_(1)))

    assert len(rs.inspect(Between(PreNorm(), PreNorm()), X).chains) == 2


def test_include_and_exclude_choose_blocks_by_their_paths() -> None:
    network = Stack(*(PreNorm() for _ in range(4)))
    anatomy = rs.inspect(network, X, select=lambda path: path != "blocks.1")
    assert [[b.path for b in chain.blocks] for chain in anatomy.chains] == [
        ["blocks.0"],
        ["blocks.2", "blocks.3"],
    ]
    assert [(s.path, s.reason) for s in anatomy.skipped] == [("blocks.1", "excluded")]


def test_whole_blocks_are_one_segment_whose_alpha_scales_the_blocks_own_input() -> None:
    network, inputs = seeded(lambda: (Stack(PreNorm(), PreNorm()), (torch.randn(3, 5, 8),)))
    anatomy = rs.inspect(network, inputs, granularity="block")
    assert [len(b.segments) for b in anatomy.chains[0].blocks] == [1, 1]
    block, x = network.blocks[0], inputs[0]
    recipe = rs.load_recipe("dr2-hold").model_copy(update={"granularity": "block", "merge": "last"})
    with torch.no_grad():
        whole = block(x)
    rs.rewire(network, example_inputs=inputs, recipe=recipe, arithmetic="float")
    rs.set_coefficients(network, 0.25, 0.5)
    with torch.no_grad():
        # x_1 = block(x) - (1 - alpha) x + beta x
        torch.testing.assert_close(block(x), whole - 0.75 * x + 0.5 * x)
    for chain in rs.chains(network):
        chain.arithmetic = "exact"
    assert_identical(step(network, inputs), step(network, inputs, inside=rs.stored_activations(network)))


# -- care ------------------------------------------------------------------------------------


def test_inspection_needs_neither_weights_nor_their_memory() -> None:
    import timm

    with torch.device("meta"):
        network = timm.create_model("vit_giant_patch14_dinov2")
    anatomy = rs.inspect(network, torch.empty(2, 3, 518, 518, device="meta"))
    assert [(c.name, len(c.blocks), len(c.segments)) for c in anatomy.chains] == [("blocks", 40, 80)]
    assert anatomy.share > 0.99
    assert all(p.is_meta for p in network.parameters())


@pytest.mark.parametrize("name", ["timm resnet", "transformers bert"])
def test_inspection_leaves_the_network_and_the_random_state_as_they_were(name: str) -> None:
    network, inputs = seeded(NETWORKS[name])
    network.train()
    network.register_forward_hook(lambda module, args, output: None)
    before = {path: dict(m.__dict__) for path, m in network.named_modules()}
    tensors = {path: t.clone() for path, t in network.state_dict().items()}
    state = torch.get_rng_state()
    rs.inspect(network, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert {path: dict(m.__dict__) for path, m in network.named_modules()} == before
    assert all(torch.equal(t, tensors[path]) for path, t in network.state_dict().items())


def test_a_network_that_fake_tensors_cannot_run_is_run_for_real() -> None:
    class Peeks(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool(x.isnan().any()):
                raise ValueError("not a number")
            return super().forward(x)

    network, inputs = seeded(lambda: (Peeks(PreNorm(), PreNorm()), (torch.randn(3, 5, 8),)))
    rs.rewire(network, example_inputs=inputs, arithmetic="exact")
    assert_identical(step(network, inputs), step(network, inputs, inside=rs.stored_activations(network)))


def test_inputs_that_the_network_does_not_take_are_said_to_be() -> None:
    network, _ = residual_stack()
    with pytest.raises(rs.UnsupportedModelError, match="does not run on the example inputs"):
        rs.inspect(network, torch.randn(3, 7))


def test_rewiring_twice_is_refused() -> None:
    network, inputs = residual_stack()
    rs.rewire(network, example_inputs=inputs)
    with pytest.raises(rs.UnsupportedModelError, match="rewired already"):
        rs.rewire(network, example_inputs=inputs)


def test_a_call_that_is_cut_differently_than_at_rewiring_is_refused() -> None:
    class Sometimes(Residual):
        def forward(self, x: torch.Tensor, extra: bool = False) -> torch.Tensor:
            x = super().forward(x)
            return x + self.linear(x) if extra else x

    class Caller(Stack):
        extra = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x, extra=self.extra)
            return self.head(x)

    network, inputs = Caller(Sometimes(), Sometimes()), (torch.randn(3, 5, 8),)
    rs.rewire(network, example_inputs=inputs)
    network.extra = True
    with pytest.raises(rs.ChainBrokenError, match="2 residual modules in this call"):
        network(*inputs)


def test_an_attribute_that_changes_after_the_surgery_is_followed() -> None:
    class Switch(Residual):
        factor = 1.0

        def __init__(self) -> None:
            super().__init__()
            self.factor = 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.factor * self.linear(x)

    network, inputs = seeded(lambda: (Stack(Switch(), Switch()), (torch.randn(3, 5, 8),)))
    rs.rewire(network, example_inputs=inputs)
    rs.set_coefficients(network, 1.0, 0.0)
    plain, _ = seeded(lambda: (Stack(Switch(), Switch()), (torch.randn(3, 5, 8),)))
    for one, other in zip(network.blocks, plain.blocks, strict=True):
        one.factor = other.factor = 3.0
    with torch.no_grad():
        assert torch.equal(network(*inputs), plain(*inputs))
