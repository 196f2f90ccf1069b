"""What a block gives out beside the stream has gradients, and an argument gets them from all its readers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import revsurgeon as rs
from tests.gradients import assert_identical, relative_error, step
from tests.models import seeded

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
DEPTH = 3


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.f, self.g = nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.2)


class GivesOut(Base):
    """Weights from the first residual module, a mean from the second, and what the output alone decides."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = self.f(self.norm(x))
        weights = values.softmax(-1)
        x = x + self.dropout(weights * values)
        branch = self.g(x)
        x = x + self.dropout(branch)
        return x, weights, branch.mean(1), x.sum((1, 2))


class GivesSizes(Base):
    """The place of the largest value, an integer tensor, and a number that came out of a submodule."""

    class Inner(Base):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return self.f(x), x.shape[1]

    def __init__(self) -> None:
        super().__init__()
        self.inner = GivesSizes.Inner()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        branch, size = self.inner(self.norm(x))
        return x + self.dropout(branch), branch.argmax(-1), size


class OneTuple(nn.Module):
    """A block that returns a tuple of one."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.block(x),)


class Sides(nn.Module):
    """Adds up everything that its blocks give out."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(DEPTH))
        self.head = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for block in self.blocks:
            x, *sides = block(x)
            for side in sides:
                part = side.sum() if isinstance(side, torch.Tensor) else side
                total = total + 0.1 * part
        return self.head(x) + total


class Remembers(Base):
    """Reads an argument in two places."""

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x = x + self.dropout(self.f(memory) * self.g(memory).softmax(-1) * self.norm(x))
        return x


class Memory(nn.Module):
    """Blocks that read what a layer before them made, as decoders read an encoder's output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.stem = nn.Linear(8, 8), nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Remembers() for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = self.encoder(x).tanh()
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, memory)
        return x


class Attends(Base):
    """Takes query, key and value."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return query + self.dropout(self.f(key).softmax(-1) * self.g(value) * self.norm(query))


class ToItself(nn.Module):
    """Hands the stream to every block three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Attends() for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, x, x)
        return x


class Chooses(nn.Module):
    """A layer for some of the tokens, as a mixture of experts has it: how many depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.expert = nn.Linear(8, 1), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = (self.router(x).squeeze(-1) > 0).nonzero(as_tuple=True)
        return torch.zeros_like(x).index_put(chosen, self.expert(x[chosen]))


class Sparse(Base):
    def __init__(self) -> None:
        super().__init__()
        self.experts = Chooses()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.experts(self.norm(x)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "side outputs": lambda: Sides(GivesOut),
    "sizes and places": lambda: Sides(GivesSizes),
    "a shared argument": Memory,
    "the stream as every argument": ToItself,
    "a mixture of experts": lambda: Sides(lambda: OneTuple(Sparse())),
}


@pytest.fixture(params=NETWORKS)
def rewired(request: pytest.FixtureRequest) -> nn.Module:
    network, _ = seeded(lambda: (NETWORKS[request.param](), ()))
    with torch.no_grad():
        expected = network.eval()(X)
    rs.rewire(network, example_inputs=X, recipe="dr2-hold", arithmetic="exact")
    assert [len(chain.blocks) for chain in rs.chains(network)] == [DEPTH]
    rs.set_coefficients(network, 1.0, 0.0)
    with torch.no_grad():
        assert torch.equal(network(X), expected)
    rs.set_coefficients(network, 0.9, 0.1)
    return network


def test_exact_gradients_are_the_stored_ones_bit_for_bit(rewired: nn.Module) -> None:
    rewired.train()
    reversible = step(rewired, (X,))
    assert_identical(reversible, step(rewired, (X,), inside=rs.stored_activations(rewired)))


def test_float_gradients_are_the_stored_ones_up_to_rounding(rewired: nn.Module) -> None:
    rewired.double().train()
    rs.set_coefficients(rewired, 0.3, 0.7)
    for chain in rs.chains(rewired):
        chain.arithmetic = "float"
    reversible = step(rewired, (X.double(),))
    stored = step(rewired, (X.double(),), inside=rs.stored_activations(rewired))
    # n inverse steps, each of which divides by beta and adds a rounding; 100 for the branches' own constants.
    segments = sum(rs.chains(rewired)[0].segments)
    bound = 100 * segments * torch.finfo(torch.float64).eps / 0.7**segments
    assert relative_error(reversible.gradients, stored.gradients) < bound


def test_a_side_output_alone_can_be_differentiated() -> None:
    network, _ = seeded(lambda: (Sides(GivesOut), ()))
    rs.rewire(network, example_inputs=X, recipe="dr2-hold", arithmetic="exact")
    taken: list[torch.Tensor] = []
    network.blocks[1].register_forward_hook(lambda _, __, output: taken.append(output[1]))
    wanted = [*network.blocks[0].parameters(), *network.blocks[1].f.parameters()]

    def gradients() -> list[torch.Tensor]:
        taken.clear()
        torch.manual_seed(0)
        network.train()(X)
        return list(torch.autograd.grad((taken[0] ** 2).sum(), wanted))

    reversible = gradients()
    with rs.stored_activations(network):
        assert all(map(torch.equal, reversible, gradients()))
    assert any(bool(g.any()) for g in reversible)


def test_the_stream_as_every_argument_is_kept_nowhere() -> None:
    network, _ = seeded(lambda: (ToItself(), ()))
    assert [s.code.splitlines()[0] for s in rs.inspect(network, X).segments] == [
        "def segment(self, x, alpha):"
    ] * DEPTH
