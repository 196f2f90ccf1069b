"""The reversible libraries of the package registry, put into a network in place of its rows of blocks.

Each of them takes functions and joins them by a rule of its own. So the branches of the blocks are handed
over in the order in which the network calls them, and the rest of the network (patch embedding,
downsampling, head) stays what it is. What comes out is another network than the source: which one is said at
each class. The libraries are imported when they are used; none of them is a dependency.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks.peers_networks import Subject


class NotMeasured(Exception):  # noqa: N818  # an outcome, not an error
    """A row has no figures, for a reason that the table states.

    Args:
        status: "not installed" or "does not apply".
        reason: in a sentence.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def library(name: str) -> ModuleType:
    """Import a library.

    Raises:
        NotMeasured: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotMeasured("not installed", f"{error}; pip install 'revsurgeon[bench]' installs it") from error


class Coupled(nn.Module):
    """A row of functions, joined by a library's rule.

    Attributes:
        conventional: compute the same with stored activations, as a reference for the gradients.
    """

    conventional = False

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        """x is what the first block of the row is called with; other arguments are the block's own."""
        return self.stored(x) if self.conventional else self.reversible(x)

    @abstractmethod
    def reversible(self, x: torch.Tensor) -> torch.Tensor:
        """As the library does it."""

    @abstractmethod
    def stored(self, x: torch.Tensor) -> torch.Tensor:
        """The same function, differentiated by autograd alone."""


def couple(subject: Subject, network: nn.Module, make: Callable[[Sequence[nn.Module]], Coupled]) -> None:
    """Put a library in place of each row of blocks.

    Args:
        subject: the network's.
        network: is changed in place.
        make: joins functions; it gets the branches, or the blocks themselves where these cannot be cut.
    """
    for path in subject.stages:
        stage = network.get_submodule(path)
        blocks = list(stage.children())
        head, rest = blocks[: subject.skipped], blocks[subject.skipped :]
        functions = [b for block in rest for b in subject.branches(block)] if subject.branches else rest
        modules = [*head, make(functions)]
        is_list = isinstance(stage, nn.ModuleList)
        network.set_submodule(path, nn.ModuleList(modules) if is_list else nn.Sequential(*modules))


def needs_branches(subject: Subject) -> None:
    """Refuse a network whose blocks do more than add.

    Raises:
        NotMeasured: an additive coupling cannot express it.
    """
    if subject.branches is None:
        reason = "its blocks end in relu(x + f(x)), and an additive coupling has nothing behind the sum"
        raise NotMeasured("does not apply", reason)


class Momentum(Coupled):
    """momentumnet (Sander et al., ICML 2021): ``v = gamma v + (1 - gamma) f(x); x = x + v``, from v = 0.

    At gamma = 0 it is the source network, where it cannot be reversed. v is an integer that keeps what the
    division by gamma drops in 64 bits an element; x is a float.
    """

    def __init__(self, functions: Sequence[nn.Module], gamma: float, residual: bool) -> None:
        super().__init__()
        momentum_net = library("momentumnet").MomentumNet
        self.net = momentum_net(functions, gamma, use_backprop=False, is_residual=residual)
        self.reference = momentum_net(functions, gamma, use_backprop=True, is_residual=residual)

    def reversible(self, x: torch.Tensor) -> torch.Tensor:
        rebuilt: torch.Tensor = self.net(x)
        return rebuilt

    def stored(self, x: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = self.reference(x)
        return kept


class Duplicated(Coupled):
    """Two streams that start equal, and are averaged at the end.

    With ``x1 += f(x2); x2 += g(x1)`` and so on this is the function of Re2TAL: of revsurgeon at (0, 1).
    """

    def reversible(self, x: torch.Tensor) -> torch.Tensor:
        return _mean(self.run(torch.cat([x, x], dim=-1)))

    def stored(self, x: torch.Tensor) -> torch.Tensor:
        return _mean(self.run_stored(torch.cat([x, x], dim=-1)))

    @abstractmethod
    def run(self, both: torch.Tensor) -> torch.Tensor:
        """The library's network on the two streams, joined in their last dimension."""

    @abstractmethod
    def run_stored(self, both: torch.Tensor) -> torch.Tensor:
        """The same, differentiated by autograd alone."""


def _mean(both: torch.Tensor) -> torch.Tensor:
    first, second = both.chunk(2, dim=-1)
    return (first + second) / 2


class MemCNN(Duplicated):
    """memcnn (van de Leemput et al., JOSS 2019): additive couplings that free their inputs."""

    def __init__(self, functions: Sequence[nn.Module]) -> None:
        super().__init__()
        memcnn = library("memcnn")
        self.couplings = nn.ModuleList(
            memcnn.InvertibleModuleWrapper(
                memcnn.AdditiveCoupling(f, g, split_dim=-1), keep_input=False, preserve_rng_state=True
            )
            for f, g in _pairs(functions)
        )

    def run(self, both: torch.Tensor) -> torch.Tensor:
        for coupling in self.couplings:
            both = coupling(both)
        return both

    def run_stored(self, both: torch.Tensor) -> torch.Tensor:
        for coupling in self.couplings:
            both = coupling.get_submodule("_fn")(both)
        return both


class RevLib(Duplicated):
    """revlib: the same coupling, one function at a time, the streams changing places."""

    def __init__(self, functions: Sequence[nn.Module]) -> None:
        super().__init__()
        self.net = library("revlib").ReversibleSequential(*functions, split_dim=-1)

    def run(self, both: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(both)
        return out

    def run_stored(self, both: torch.Tensor) -> torch.Tensor:
        x0, x1 = both.chunk(2, dim=-1)
        for module in self.net:
            x0, x1 = x1, module.wrapped_module(x0, x1)
        return torch.cat([x0, x1], dim=-1)


class RevTorch(Duplicated):
    """RevTorch: the coupling of RevNet (Gomez et al., NeurIPS 2017) over a whole row in one function."""

    def __init__(self, functions: Sequence[nn.Module]) -> None:
        super().__init__()
        revtorch = library("revtorch")
        self.net = revtorch.ReversibleSequence(
            nn.ModuleList(
                revtorch.ReversibleBlock(f, g, split_along_dim=-1, fix_random_seed=True)
                for f, g in _pairs(functions)
            )
        )

    def run(self, both: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(both)
        return out

    def run_stored(self, both: torch.Tensor) -> torch.Tensor:
        x1, x2 = both.chunk(2, dim=-1)
        blocks: Any = self.net.reversible_blocks
        for block in blocks:
            block._init_seed("f")  # it seeds torch anew before every function
            x1 = x1 + block.f_block(x2)
            block._init_seed("g")
            x2 = x2 + block.g_block(x1)
        return torch.cat([x1, x2], dim=-1)


def _pairs(functions: Sequence[nn.Module]) -> list[tuple[nn.Module, nn.Module]]:
    return list(zip(functions[::2], functions[1::2], strict=True))
