"""Which segment of a rewired network is the first to compute something else than the unrewired one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from revsurgeon.checks.reference import by_the_equations
from revsurgeon.checks.steps import forward
from revsurgeon.reversible.coefficients import some_chains
from revsurgeon.reversible.round_trip import Watch, watched
from revsurgeon.rewiring.measure import Arguments, same_bits, tensors_of
from revsurgeon.rewiring.unrewired import rewired_forwards, unrewired


@dataclass
class _Call:
    """One call of one module: its path, and the tensors that went in and came out."""

    path: str
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]


def first_difference(
    network: nn.Module, original: nn.Module, arguments: Arguments, *, training: bool, seed: int
) -> str | None:
    """The first segment, or outside of the chains the first module, whose result differs.

    Whole blocks are compared first, then the segments of the first block that differs.

    Args:
        network: rewired, at (1, 0).
        original: with the same module names; the same object means the network without its chains.
        arguments, training, seed: of the forward in which they differ.
    """

    def run(model: nn.Module) -> None:
        forward(model, arguments, training=training, seed=seed)

    def calls(paths: list[str]) -> tuple[list[_Call], list[_Call]]:
        with plain(network, original), _recorded(original, paths) as theirs:
            run(original)
        with _recorded(network, paths) as ours:
            run(network)
        return ours, theirs

    all_ours, all_theirs = calls([f.path for f in rewired_forwards(network)])
    for number, (ours, theirs) in enumerate(zip(all_ours, all_theirs, strict=False)):
        if not _same(ours.inputs, theirs.inputs):
            break
        if not _same(ours.outputs, theirs.outputs):
            earlier = sum(call.path == ours.path for call in all_ours[:number])
            return _segment(network, original, theirs, earlier, run)
    everything = [path for path, _ in network.named_modules() if path]
    for ours, theirs in zip(*calls(everything), strict=False):
        if ours.path == theirs.path and not _same(ours.outputs, theirs.outputs):
            return ours.path
    return None


def _segment(
    network: nn.Module,
    original: nn.Module,
    block: _Call,
    earlier: int,
    run: Callable[[nn.Module], None],
) -> str:
    """The first segment of a block's call that goes wrong.

    What the segments should give is known if the same segments with the reference's addition of the skip lead
    to the unrewired block's output. Else a segment is right if its result is among the values that the
    unrewired block computes: there is no other way to know what in the block corresponds to it.
    """

    def of_this_call(found: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
        own = [(name, x) for name, x in found if name.startswith(f"{block.path} (")]
        segments = len({name for name, _ in own})
        return own[earlier * segments : (earlier + 1) * segments]

    ours: list[tuple[str, torch.Tensor]] = []
    with watched(some_chains(network), Watch(passage=lambda p: ours.append((p.call.name, p.output.clone())))):
        run(network)
    wanted: list[tuple[str, torch.Tensor]] = []
    with by_the_equations(network, lambda name, x: wanted.append((name, x.clone()))):
        run(network)
    pairs = list(zip(of_this_call(ours), of_this_call(wanted), strict=False))
    if pairs and any(same_bits(pairs[-1][1][1], output) for output in block.outputs):
        wrong = [name for (name, result), (_, right) in pairs if not same_bits(result, right)]
        return wrong[0] if wrong else block.path
    values = _Values()
    with plain(network, original), _inside(original.get_submodule(block.path), values, earlier):
        run(original)
    for name, result in of_this_call(ours):
        if not any(same_bits(result, value) for value in values.seen):
            return name
    return block.path


def plain(network: nn.Module, original: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """The unrewired network ready to run: where it is the rewired one, with the chains taken off."""
    return unrewired(network) if original is network else contextlib.nullcontext()


def _same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(same_bits, ours, theirs))


@contextlib.contextmanager
def _recorded(model: nn.Module, paths: list[str]) -> Iterator[list[_Call]]:
    """The calls of these modules inside this context, in the order in which they ended."""
    calls: list[_Call] = []
    handles = []
    for path in paths:

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            inputs = [tensor.clone() for tensor in tensors_of((args, kwargs))]
            calls.append(_Call(path, inputs, [tensor.clone() for tensor in tensors_of(output)]))

        handles.append(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class _Values(TorchDispatchMode):
    """Keeps a copy of every floating tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.seen.append(leaf.clone())
        return result


@contextlib.contextmanager
def _inside(block: nn.Module, values: _Values, earlier: int) -> Iterator[None]:
    """Keep the values of one call of a block, after so many earlier ones."""
    count = 0

    def before(module: nn.Module, args: Any) -> None:
        nonlocal count
        if count == earlier:
            values.__enter__()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal count
        if count == earlier:
            values.__exit__(None, None, None)
        count += 1

    handles = [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
