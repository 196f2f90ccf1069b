"""Verify weights that are larger than the memory: one block's weights at a time.

The architecture is built without weights. Each rewired block becomes a network of its own with a chain of
its own, gets its weights from the files, runs the checks on random inputs of the shapes that it has inside
the network, and lets the weights go. In exact arithmetic that proves the chains: each segment gives back its
input bit for bit, whatever that is. In float arithmetic the error that accumulates from block to block is not
seen, and the report says so.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from revsurgeon.anatomy.probe import Call, probe
from revsurgeon.artifact import Manifest
from revsurgeon.artifact.read import locate_tensors
from revsurgeon.checkpoints import set_as_recorded, spec_of
from revsurgeon.checks.report import CheckResult, Measurement, Report, result_of
from revsurgeon.checks.steps import argument_cast
from revsurgeon.checks.subject import BATCH_SIZES, Subject
from revsurgeon.checks.verification import checks_of, made_report, result_of_check, worthwhile_threads
from revsurgeon.errors import UsageError
from revsurgeon.rewiring import ChainSpec, attach, detach
from revsurgeon.rewiring.measure import Arguments
from revsurgeon.sources import build_architecture
from revsurgeon.sources.construction import take_weights
from revsurgeon.sources.tensors import aligned, main_dtype

Progress = Callable[[str], None]
Shapes = dict[tuple[str, int], Any]
"""Arguments as they were recorded, by a block's path and the batch size."""

_WHOLE = "it needs the weights of the whole network at once, and --stream holds one block's"
_IN_FLOAT = "block by block: what float arithmetic accumulates from block to block is not seen by --stream"


def report_by_block(
    subject: Subject, only: Sequence[str] | None, tell: Progress, began: float, device: torch.device
) -> Report:
    """Run the checks of the files on the files, and the others on one block after the other.

    Args:
        subject: an artifact; its network is never made.
        only: names of checks.
        tell: is told what happens next.
        began: when the verification did (`time.monotonic`).
        device: to run the blocks on.
    """
    results: dict[str, CheckResult] = {}
    wanted = dict(checks_of(only))
    for name, check in wanted.items():
        if check.needs == "files":
            tell(f"Checking {name}")
            results[name] = result_of_check(name, check, subject, ())
    manifest, path = subject.manifest, subject.path
    by_block = {name: check for name, check in wanted.items() if check.by_block}
    found: dict[str, list[tuple[str, CheckResult]]] = defaultdict(list)
    if manifest is not None and path is not None and by_block:
        with worthwhile_threads(subject):
            for block in _blocks(subject, manifest, path, device):
                tell(f"Checking {block.name}")
                for name, check in by_block.items():
                    found[name].append((block.name, result_of_check(name, check, block, ())))
    for name, check in wanted.items():
        if check.needs == "network" and name not in by_block:
            results[name] = CheckResult(name=name, verdict="skipped", reason=_WHOLE, seconds=0.0)
    for name, of_blocks in found.items():
        results[name] = _together(name, of_blocks, manifest)
    for name in wanted.keys() - results.keys():
        reason = "the artifact cannot be read"
        results[name] = CheckResult(name=name, verdict="skipped", reason=reason, seconds=0.0)
    return made_report(subject, [results[name] for name in wanted], began)


def _blocks(subject: Subject, manifest: Manifest, path: Path, device: torch.device) -> Iterator[Subject]:
    """Each rewired block as a subject, with its weights only while it is looked at."""
    build: Any = dict(manifest.build)
    if not build:
        raise UsageError("--stream needs an artifact that says how its network is built.", where=str(path))
    network = build_architecture(
        build,
        None if manifest.config is None else manifest.config.encode(),
        device="stand-ins",
        allow_python=subject.options.allow_python,
        trust_remote_code=subject.options.trust_remote_code,
    )
    shapes = _recorded(network, manifest, subject)
    files = locate_tensors(path, manifest)
    for spec in (spec_of(record) for record in manifest.chains):
        for position, block in enumerate(dict.fromkeys(spec.blocks)):
            alone = _Alone(network.get_submodule(block), block)
            with _weights(alone, files, device):
                chain = attach(alone, [_of_one(spec, position)], granularity=manifest.recipe.granularity)[0]
                set_as_recorded(chain, manifest)
                try:
                    yield _subject(subject, alone, block, shapes, device)
                finally:
                    detach(alone)


class _Alone(nn.Module):
    """A network that is one block, at the path that it has in its own network."""

    def __init__(self, block: nn.Module, path: str) -> None:
        super().__init__()
        self.path = path
        *parents, last = path.split(".")
        owner: nn.Module = self
        for parent in parents:
            owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        owner.add_module(last, block)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block."""
        return self.get_submodule(self.path)(*args, **kwargs)


@contextlib.contextmanager
def _weights(alone: _Alone, files: dict[str, Path], device: torch.device) -> Iterator[None]:
    """Give a block its weights inside this context."""
    from safetensors import safe_open

    tensors = {}
    for name in alone.state_dict():
        with safe_open(str(files[name]), framework="pt", device="cpu") as opened:
            tensors[name] = aligned(opened.get_tensor(name).clone())
    take_weights(alone, tensors)
    del tensors
    alone.to(device)
    try:
        yield
    finally:
        for parameter in alone.parameters():
            parameter.grad = None
            parameter.data = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)


def _of_one(spec: ChainSpec, position: int) -> ChainSpec:
    """A chain of one block of a chain."""
    block = list(dict.fromkeys(spec.blocks))[position]
    first = spec.blocks.index(block)
    return replace(
        spec,
        name=block,
        blocks=(block,),
        streams=(spec.streams[first],),
        outputs=(spec.outputs[first],),
        segments=(spec.segments[first],),
    )


def _recorded(network: nn.Module, manifest: Manifest, subject: Subject) -> Shapes:
    """The arguments that every rewired block is called with, as tensors without memory where that works."""
    wanted = {block for chain in manifest.chains for block in chain.blocks}
    found: Shapes = {}
    built = getattr(torch, main_dtype(dict(network.named_parameters())) or "float32")
    for size in BATCH_SIZES:
        args, kwargs = argument_cast(subject.draw(size, 0), built)
        root, _ = probe(network, kwargs if kwargs else args)
        calls = [root]
        while calls:
            call: Call = calls.pop()
            calls += call.children
            if call.path in wanted:
                found.setdefault((call.path, size), (call.args, call.kwargs))
    return found


def _subject(whole: Subject, alone: _Alone, path: str, shapes: Shapes, device: torch.device) -> Subject:
    def draw(size: int, seed: int) -> Arguments:
        generator = torch.Generator().manual_seed(seed)

        def like(recorded: torch.Tensor) -> torch.Tensor:
            shape, dtype = tuple(recorded.shape), recorded.dtype
            if dtype.is_floating_point:
                return torch.randn(shape, generator=generator).to(device, _dtype(alone, dtype))
            # A mask that hides nothing, or indices that any table has.
            return torch.full(shape, dtype == torch.bool, dtype=dtype, device=device)

        found: Any = pytree.tree_map_only(torch.Tensor, like, shapes[path, size])
        return found

    @contextlib.contextmanager
    def original(network: nn.Module) -> Iterator[nn.Module]:
        yield network

    return Subject(path, lambda: alone, original, draw, replace(whole.options))


def _dtype(alone: _Alone, recorded: torch.dtype) -> torch.dtype:
    """The type that a floating argument has once the weights are there; stand-ins are of the default type."""
    weights = {p.dtype for p in alone.parameters() if p.is_floating_point()}
    return next(iter(weights)) if len(weights) == 1 and recorded == torch.float32 else recorded


def _together(name: str, of_blocks: list[tuple[str, CheckResult]], manifest: Manifest | None) -> CheckResult:
    """One result for all blocks: of every measurement the first that failed, else the one nearest to it."""
    groups: dict[str, list[Measurement]] = defaultdict(list)
    notes: dict[str, None] = {}
    for path, result in of_blocks:
        notes.update(dict.fromkeys(result.notes))
        for measurement in result.measurements:
            place = measurement.place or (path if measurement.value else None)
            told = measurement.model_copy(update={"place": place})
            groups[measurement.what.replace(path, "a block")].append(told)
    measurements = [_worst(what, group) for what, group in groups.items()]
    if manifest is not None and manifest.arithmetic == "float":
        notes[_IN_FLOAT] = None
    seconds = sum(result.seconds for _, result in of_blocks)
    merged = result_of(name, measurements, list(notes), seconds)
    hint = next((result.hint for _, result in of_blocks if result.hint), None)
    return merged.model_copy(update={"hint": hint})


def _worst(what: str, group: list[Measurement]) -> Measurement:
    failed = [m for m in group if not m.passed]
    told = (
        failed[0] if failed else max(group, key=lambda m: m.value / m.threshold if m.threshold else m.value)
    )
    by_segment = {segment: value for m in group for segment, value in m.by_segment.items()}
    return told.model_copy(
        update={"what": f"{what}, the worst of {len(group)} blocks", "by_segment": by_segment}
    )
