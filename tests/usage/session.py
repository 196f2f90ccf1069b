"""A network in use: it takes the steps of a program, and tells every value that they give."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as checkpointed

import revsurgeon as rs
from tests.usage.programs import RUNS, Step

Values = list[torch.Tensor | None]


class Session:
    """One network, and the forwards that are alive.

    Args:
        network: rewired; a copy is used.
        shape: of its input.
        stored: run it with stored activations.
        retain: keep every graph, whatever the program says.
    """

    def __init__(self, network: nn.Module, shape: torch.Size, *, stored: bool, retain: bool) -> None:
        self.network = copy.deepcopy(network)
        self.shape, self.retain = shape, retain
        for chain in rs.chains(self.network):
            chain.stored = stored  # for good: a checkpoint runs the network again outside of any context
        self.blocks = list(dict.fromkeys(path for chain in rs.chains(network) for path in chain.blocks))
        self.alive: dict[str, dict[str, torch.Tensor]] = {}

    def take(self, step: Step) -> Values:
        """Take a step; the values that it gives."""
        given: Values | None = getattr(self, step.name)(**step.arguments)
        return given or []

    def forward(
        self,
        run: str,
        seed: int,
        input_gradient: bool,
        mode: str,
        autocast: bool,
        offload: bool,
        checkpoint: str,
        hooks: Sequence[tuple[int, str, bool]],
    ) -> Values:
        generator = torch.Generator().manual_seed(seed)
        dtype = next(self.network.parameters()).dtype
        x = torch.randn(self.shape, generator=generator, dtype=dtype).requires_grad_(input_gradient)
        kept, given = {"input": x}, Values()
        with contextlib.ExitStack() as stack:
            for block, action, retain in hooks:
                hook = self._hook(block, action, retain, kept, given)
                handle = self.network.get_submodule(self.blocks[block]).register_forward_hook(hook)
                stack.callback(handle.remove)
            if mode != "grad":
                stack.enter_context(torch.no_grad() if mode == "no_grad" else torch.inference_mode())
            stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast))
            if offload:
                stack.enter_context(saved_tensors_hooks(_offloaded, _nothing_more))
            network: Callable[..., torch.Tensor] = self.network
            if checkpoint != "no" and (input_gradient or checkpoint == "yes"):
                reentrant = checkpoint == "reentrant"
                network = functools.partial(checkpointed, self.network, use_reentrant=reentrant)
            torch.manual_seed(seed)
            kept["output"] = network(x)
        self.alive[run] = kept
        return [kept["output"].detach().clone(), *given]

    def _hook(
        self, block: int, action: str, retain: bool, kept: dict[str, torch.Tensor], given: Values
    ) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
            parameters = [p for p in module.parameters() if p.requires_grad]
            if action == "tap":
                kept[f"tap {block}"] = output
            elif action == "random":
                torch.rand(3)
            elif action == "write":
                output.mul_(0.5)
            elif action == "scale the gradient":
                if output.requires_grad:
                    output.register_hook(lambda gradient: 2 * gradient)
            elif output.requires_grad and parameters:
                given.extend(self._grad(output.square().sum(), parameters, retain))

        return hook

    def grad(self, run: str, outputs: Sequence[str], by: Sequence[str], retain: bool) -> Values:
        found = [leaf for name in by for leaf in self._leaves(run, name) if leaf.requires_grad]
        leaves = list({id(leaf): leaf for leaf in found}.values())
        loss = self._loss(run, outputs)
        return self._grad(loss, leaves, retain) if leaves and loss is not None else []

    def _grad(self, loss: torch.Tensor, leaves: Sequence[torch.Tensor], retain: bool) -> Values:
        retain = retain or self.retain
        found = torch.autograd.grad(loss, leaves, retain_graph=retain, allow_unused=True)
        return [None if gradient is None else gradient.clone() for gradient in found]

    def _leaves(self, run: str, name: str) -> list[torch.Tensor]:
        kind, _, number = name.partition(" ")
        if kind == "parameters":
            return list(self.network.parameters())
        if kind == "block":
            return list(self.network.get_submodule(self.blocks[int(number)]).parameters())
        kept = self.alive.get(run, {})
        return [kept[name]] if name in kept else []

    def _loss(self, run: str, outputs: Sequence[str]) -> torch.Tensor | None:
        """Not linear, and another function of every element; None where nothing in it has a gradient."""
        kept = [tensor for name in outputs if (tensor := self.alive.get(run, {}).get(name)) is not None]
        parts = [
            (tensor * torch.linspace(-1, 2, tensor.numel()).view(tensor.shape)).sum() + tensor.square().mean()
            for tensor in kept
            if tensor.requires_grad
        ]
        return torch.stack(parts).sum() if parts else None

    def backward(self, run: str, outputs: Sequence[str], retain: bool) -> None:
        loss = self._loss(run, outputs)
        if loss is not None:
            loss.backward(retain_graph=retain or self.retain)

    def backward_of_both(self, retain: bool) -> None:
        losses = [loss for run in RUNS if (loss := self._loss(run, ["output"])) is not None]
        if losses:
            torch.stack(losses).sum().backward(retain_graph=retain or self.retain)

    def read(self) -> Values:
        gradients = [None if p.grad is None else p.grad.clone() for p in self.network.parameters()]
        return [*gradients, *(buffer.clone() for buffer in self.network.buffers())]

    def zero_grad(self) -> None:
        self.network.zero_grad()

    def coefficients(self, beta: float) -> None:
        rs.set_coefficients(self.network, 1.0 - beta, beta)

    def train(self, mode: bool) -> None:
        self.network.train(mode)

    def freeze(self, block: int, frozen: bool) -> None:
        self.network.get_submodule(self.blocks[block]).requires_grad_(not frozen)

    def drop(self, run: str, what: str) -> None:
        if what == "run":
            self.alive.pop(run, None)
        else:
            self.alive.get(run, {}).pop(what, None)

    def write(self, run: str, what: str) -> None:
        tensor = self.alive.get(run, {}).get(what)
        if tensor is not None and not (tensor.is_leaf and tensor.requires_grad) and not tensor.is_inference():
            tensor.mul_(0.5)

    def chunk(self, pieces: int) -> None:
        for chain in rs.chains(self.network):
            chain.chunks = pieces

    def anchor(self, every: int) -> None:
        for chain in rs.chains(self.network):
            chain.anchors = every

    def rate(self, block: int, of_dropout: float) -> None:
        for module in self.network.get_submodule(self.blocks[block]).modules():
            if isinstance(module, nn.Dropout):
                module.p = of_dropout

    @torch.no_grad()
    def change(self, block: int) -> None:
        for parameter in self.network.get_submodule(self.blocks[block]).parameters():
            parameter.add_(0.01)

    def copy(self) -> None:
        self.network, self.alive = copy.deepcopy(self.network), {}


def _offloaded(tensor: torch.Tensor) -> torch.Tensor:
    """A copy. (torch's own save_on_cpu copies nothing that is on the CPU already, and misses writes.)"""
    return tensor.detach().clone()


def _nothing_more(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
