"""Random residual networks: a plan that says what is strange about one, and the modules that follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

HEIGHT = WIDTH = 4
TOKENS = 6


@dataclass(frozen=True)
class BranchPlan:
    """One residual module of a block.

    Attributes:
        body: what the branch computes: "mlp", "attention", "fused attention", "convolution", "mixing",
            "gated", "recurrent", "nothing" (zero weights).
        norm: "layer", "rms", "batch", "group" or "none".
        place: of the norm: "pre", "post" (behind the addition) or "branch" (behind the branch).
        activation: by name.
        add: how the skip is added.
        scale: of the branch or the skip: "none", "constant", "layer scale", "rezero", "skip constant".
        dropout: "none", "module", "function", "path", "channels", "noise".
        turned: the skip and the branch are in another layout, and both are turned back.
    """

    body: str = "mlp"
    norm: str = "layer"
    place: str = "pre"
    activation: str = "gelu"
    add: str = "x + f"
    scale: str = "none"
    dropout: str = "none"
    turned: bool = False


@dataclass(frozen=True)
class BlockPlan:
    """One block.

    Attributes:
        branches: its residual modules, one after the other.
        parallel: all branches read the block's input, and are added to it together.
        output: "tensor", "tuple", "pair", "named" or "dictionary".
        arguments: "none", "mask" (keyword only), "bias" (a tensor that needs a gradient), "list", "flag".
        oddity: "none", "shape" (a condition on the input's shape), "counter" (a buffer counts calls),
            "average" (a buffer moves with the data), "skipped at random", "early return", "shape later".
    """

    branches: tuple[BranchPlan, ...] = (BranchPlan(),)
    parallel: bool = False
    output: str = "tensor"
    arguments: str = "none"
    oddity: str = "none"


@dataclass(frozen=True)
class NetworkPlan:
    """A network.

    Attributes:
        images: (B, C, H, W) streams instead of (B, T, C).
        width: channels.
        block: the plan of all blocks, or of those of the first stage.
        depth: blocks in a stage.
        stages: how many; the width doubles between them.
        shared: every block is called twice.
        tap: the network returns what is behind its middle block too.
        container: "list", "sequential", "attributes" or "nested".
        frozen: the blocks' first parameter needs no gradient.
        odd_block: a last block that differs from the others, or None.
    """

    images: bool = False
    width: int = 4
    block: BlockPlan = BlockPlan()
    depth: int = 3
    stages: int = 1
    shared: bool = False
    tap: bool = False
    container: str = "list"
    frozen: bool = False
    odd_block: BlockPlan | None = None


class Named(NamedTuple):
    """What some blocks return."""

    hidden: torch.Tensor
    size: int


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class Branch(nn.Module):
    """post(F(x) + x), in the way that the plan says."""

    def __init__(self, plan: BranchPlan, width: int, images: bool) -> None:
        super().__init__()
        self.plan, self.images, self.width = plan, images, width
        self.norm = _norm(plan.norm, width, images)
        self.act = ACTIVATIONS[plan.activation]()
        self.drop = nn.Dropout(0.3)
        self.drop_channels = nn.Dropout2d(0.3) if images else nn.Dropout1d(0.3)
        if plan.scale == "layer scale":
            self.gamma = nn.Parameter(0.5 + torch.rand((width, 1, 1) if images else (width,)))
        if plan.scale == "rezero":
            self.alpha = nn.Parameter(torch.tensor(0.7))
        self._make_body(plan.body, TOKENS if plan.turned and not images else width)

    def _make_body(self, body: str, width: int) -> None:
        images = self.images
        if images or body == "convolution":
            layer: Any = nn.Conv2d if images else nn.Conv1d
            self.first = layer(width, 2 * width, 3, padding=1)
            self.second = layer(2 * width, width, 1)
        elif body == "attention":
            self.first = nn.MultiheadAttention(width, 2, dropout=0.2, batch_first=True)
        elif body == "fused attention":
            self.first = nn.Linear(width, 3 * width)
            self.second = nn.Linear(width, width)
        elif body == "mixing":
            tokens = self.width if self.plan.turned else TOKENS
            self.first = nn.Linear(tokens, tokens)
        elif body == "recurrent":
            self.first = nn.GRU(width, width, batch_first=True)
        else:
            self.first = nn.Linear(width, 2 * width)
            self.second = nn.Linear(width if body == "gated" else 2 * width, width)
        if body == "nothing":
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)

    def branch(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """F(x), without what is done to it afterwards."""
        body = self.plan.body
        if self.images:
            return self.second(self.act(self.first(x)))
        if body == "convolution":
            return self.second(self.act(self.first(x.transpose(1, 2)))).transpose(1, 2)
        if body == "attention":
            return self.first(x, x, x, need_weights=False)[0]
        if body == "fused attention":
            q, k, v = self.first(x).chunk(3, dim=-1)
            p = 0.2 if self.training else 0.0
            return self.second(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p))
        if body == "mixing":
            return self.first(x.transpose(1, 2)).transpose(1, 2)
        if body == "recurrent":
            return self.first(x)[0]
        if body == "gated":
            a, b = self.first(x).chunk(2, dim=-1)
            return self.second(self.act(a) * b)
        return self.second(self.act(self.first(x)))

    def scaled(self, f: torch.Tensor) -> torch.Tensor:
        """Dropout and scale of the branch."""
        plan = self.plan
        if plan.dropout == "module":
            f = self.drop(f)
        elif plan.dropout == "function":
            f = F.dropout(f, 0.3, training=self.training)
        elif plan.dropout == "channels":
            f = self.drop_channels(f)
        elif plan.dropout == "path" and self.training:
            f = f * f.new_empty((f.shape[0],) + (1,) * (f.ndim - 1)).bernoulli_(0.7).div(0.7)
        elif plan.dropout == "noise" and self.training:
            f = f + 0.1 * torch.randn_like(f)
        if plan.scale == "constant":
            f = 0.5 * f
        elif plan.scale == "layer scale":
            f = f * self.gamma
        elif plan.scale == "rezero":
            f = self.alpha * f
        return f

    def forward_branch(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """F(x), all of it."""
        h = self.norm(x) if self.plan.place == "pre" else x
        f = self.branch(h, mask)
        if self.plan.place == "branch":
            f = self.norm(f)
        return self.scaled(f)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """post(F(x) + x)."""
        turned = self.plan.turned
        if turned:
            x = x.transpose(-1, -2)
        x = _added(x, self.forward_branch(x, mask), self.plan)
        if self.plan.place == "post":
            x = self.norm(x)
        return x.transpose(-1, -2) if turned else x


def _added(x: torch.Tensor, f: torch.Tensor, plan: BranchPlan) -> torch.Tensor:
    if plan.scale == "skip constant":
        x = 0.8 * x
    if plan.add == "f + x":
        return f + x
    if plan.add == "torch.add":
        return torch.add(x, f)
    if plan.add == "alpha":
        return torch.add(x, f, alpha=0.5)
    if plan.add == "x += f":
        x = x.clone() if plan.scale == "none" else x
        x += f
        return x
    if plan.add == "f += x":
        f += x
        return f
    if plan.add == "f.add_(x)":
        return f.add_(x)
    if plan.add == "minus":
        return x - f
    if plan.add == "sum":
        return sum([x, f])
    return x + f


def _norm(kind: str, width: int, images: bool) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if images:
        return {"batch": nn.BatchNorm2d(width)}.get(kind, nn.GroupNorm(2, width))
    return {"layer": nn.LayerNorm(width), "rms": nn.RMSNorm(width)}.get(kind, _LastNorm(width))


class _LastNorm(nn.Module):
    """Batch norm over the last dimension of (B, T, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """A block, in the way that the plan says."""

    def __init__(self, plan: BlockPlan, width: int, images: bool) -> None:
        super().__init__()
        self.plan = plan
        self.branches = nn.ModuleList(Branch(branch, width, images) for branch in plan.branches)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(width))
        self.channels = 1 if images else -1

    def forward(
        self, x: torch.Tensor, *given: Any, mask: torch.Tensor | None = None, flag: bool = True
    ) -> Any:
        """x -> x, or what the plan's `output` says."""
        plan = self.plan
        if plan.arguments == "bias":
            x = x + 0.0 * given[0].sum() if not flag else x
            mask = given[0]
        if plan.arguments == "list":
            mask = given[0][0]
        if plan.oddity == "early return" and not flag:
            return x
        if plan.oddity == "skipped at random" and self.training and torch.rand(()) < 0.3:
            return self._returned(x)
        if plan.oddity == "shape" and x.shape[1] % 2:
            x = F.relu(x)
        if plan.oddity == "counter":
            self.calls += 1
        if plan.oddity == "average" and self.training:
            with torch.no_grad():
                dims = [d for d in range(x.ndim) if d != self.channels % x.ndim]
                self.average.mul_(0.9).add_(0.1 * x.mean(dims))
        size = x.shape
        if plan.parallel:
            total = x
            for branch in self.branches:
                total = total + branch.forward_branch(x, mask)
            x = total
        else:
            for branch in self.branches:
                x = branch(x, mask)
        if plan.oddity == "shape later":
            x = x.reshape(size)
        return self._returned(x)

    def _returned(self, x: torch.Tensor) -> Any:
        output = self.plan.output
        if output == "tuple":
            return (x,)
        if output == "pair":
            return x, x.shape[0]
        if output == "named":
            return Named(x, x.shape[1])
        if output == "dictionary":
            return {"hidden": x}
        return x


class Nested(nn.Module):
    """Blocks one level further down."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.inner = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, run: Any) -> torch.Tensor:
        """Through all of them."""
        for block in self.inner:
            x = run(block, x)
        return x


class Network(nn.Module):
    """A stem, stages of blocks, and a head."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        self.plan = plan
        images, width = plan.images, plan.width
        self.stem = nn.Conv2d(3, width, 1) if images else nn.Linear(3, width)
        self.bias = nn.Parameter(torch.randn(TOKENS, TOKENS))
        names: list[list[str]] = []
        for stage in range(plan.stages):
            blocks = [Block(plan.block, width, images) for _ in range(plan.depth)]
            if plan.odd_block is not None:
                blocks.append(Block(plan.odd_block, width, images))
            names.append(self._keep(stage, blocks))
            if stage + 1 < plan.stages:
                down = nn.Conv2d(width, 2 * width, 2, stride=2) if images else nn.Linear(width, 2 * width)
                setattr(self, f"down{stage}", down)
                width *= 2
        self.names = names
        self.head = nn.Linear(width, 3)
        if plan.frozen:
            for module in self.modules():
                if isinstance(module, Branch):
                    next(module.first.parameters()).requires_grad_(False)

    def _keep(self, stage: int, blocks: list[Block]) -> list[str]:
        container = self.plan.container
        if container == "attributes":
            for number, block in enumerate(blocks):
                setattr(self, f"block{stage}_{number}", block)
            return [f"block{stage}_{number}" for number in range(len(blocks))]
        made = nn.Sequential(*blocks) if container == "sequential" else nn.ModuleList(blocks)
        setattr(self, f"stage{stage}", Nested(blocks) if container == "nested" else made)
        return [f"stage{stage}"]

    def run(self, block: Block, x: torch.Tensor) -> torch.Tensor:
        """Call a block as its plan wants, and take the stream out of what it returns."""
        arguments, fused = block.plan.arguments, not self.plan.images
        if arguments == "mask":
            mask = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype) if fused else None
            output = block(x, mask=mask)
        elif arguments == "bias":
            output = block(x, self.bias[: x.shape[1], : x.shape[1]])
        elif arguments == "list":
            output = block(x, [None, 3])
        elif arguments == "flag":
            output = block(x, flag=True)
        else:
            output = block(x)
        if isinstance(output, dict):
            return output["hidden"]
        return output[0] if isinstance(output, tuple) else output

    def forward(self, x: torch.Tensor) -> Any:
        """(B, 3, H, W) or (B, T, 3) -> (B, 3), and what is behind the tapped block."""
        x = self.stem(x)
        tap = None
        for stage, names in enumerate(self.names):
            for _ in range(2 if self.plan.shared else 1):
                for name in names:
                    x = self._through(getattr(self, name), x)
                    tap = x if tap is None else tap
            if stage + 1 < self.plan.stages:
                x = getattr(self, f"down{stage}")(x)
        dims = (2, 3) if self.plan.images else (1,)
        logits = self.head(x.mean(dims))
        return (logits, tap) if self.plan.tap else logits

    def _through(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if isinstance(module, Block):
            return self.run(module, x)
        if isinstance(module, Nested):
            return module(x, self.run)
        for block in module.children():
            assert isinstance(block, Block)
            x = self.run(block, x)
        return x


def build(plan: NetworkPlan, seed: int) -> tuple[Network, torch.Tensor]:
    """A network with random weights, and a batch of two for it."""
    torch.manual_seed(seed)
    network = Network(plan)
    for module in network.modules():  # statistics that are not those of an untouched network
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    shape = (2, 3, HEIGHT, WIDTH) if plan.images else (2, TOKENS, 3)
    return network, torch.randn(shape)


def tidied(plan: NetworkPlan) -> NetworkPlan:
    """The same plan without what makes no network, such as a norm of another width on turned tokens."""
    if plan.images:
        return plan
    return replace(
        plan, block=_tidied_block(plan.block), odd_block=plan.odd_block and _tidied_block(plan.odd_block)
    )


def _tidied_block(plan: BlockPlan) -> BlockPlan:
    branches = []
    for branch in plan.branches:
        if plan.parallel:
            branch = replace(branch, turned=False)
        if branch.turned:
            branch = replace(
                branch, norm="none", scale="none" if branch.scale == "layer scale" else branch.scale
            )
        if branch.body == "gated" and branch.activation == "relu in place":  # it would change a view
            branch = replace(branch, activation="relu")
        branches.append(branch)
    return replace(plan, branches=tuple(branches))
