"""Verify an artifact or a network: run the checks, one after the other, and report."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from revsurgeon.checks import CHECKS
from revsurgeon.checks.check import Check, Skipped
from revsurgeon.checks.report import CheckResult, Measurement, Report, result_of
from revsurgeon.checks.steps import NETWORK_ERRORS, refusal
from revsurgeon.checks.subject import Options, Subject
from revsurgeon.errors import RevsurgeonError, UsageError
from revsurgeon.inference_mode import outside_inference_mode
from revsurgeon.reversible.coefficients import get_coefficients

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "float64", "float16", "bfloat16")

SMALL = 2_000_000
"""Parameters of a network for which a second thread does not pay."""

Progress = Callable[[str], None]
Extent = Literal["full", "partial", "quick", "by block"]


@outside_inference_mode
def verify(
    path_or_model: str | Path | nn.Module,
    example_inputs: Any = None,
    *,
    into: nn.Module | None = None,
    offline: bool = False,
    rtol: float | None = None,
    device: str = "auto",
    dtype: str | None = None,
    inputs: Sequence[str] | None = None,
    seeds: int | None = None,
    only: Sequence[str] | None = None,
    stream: bool = False,
    allow_python: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Prove that a converted network is what its manifest says, and that its gradients are right.

    Args:
        path_or_model: an artifact's directory or weight file, the Hub id of one, or a rewired network, whose
            compiled segments (`compile_segments`) are verified as they were before that.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments to run on.
            None draws random ones as the manifest describes them.
        into: the unrewired network to load into, for an artifact that does not say how to build one.
        offline: do not look for the source, so leave the provenance check out.
        rtol: relative error to allow in what is recovered and in gradients; None derives it (0 in exact
            arithmetic). The recipe's `checks` may set it too.
        device: "cpu", "cuda" or "mps"; "auto" takes the accelerator, if there is one. A network stays where
            it is.
        dtype: cast an artifact's weights first: "float32", "float64", "float16" or "bfloat16".
        inputs: ``NAME=SHAPE[:DTYPE]`` for other inputs than the manifest's.
        seeds: how many random inputs (2, or the recipe's).
        only: names of the checks to run, see `revsurgeon.checks.CHECKS`; None runs all.
        stream: block by block, for weights that are larger than the memory.
        allow_python, trust_remote_code, allow_pickle: what is allowed in building the network and its source.
        token: for the Hub; None takes the one that you are logged in with.
        cache_dir: where downloads are kept.
        progress: is told what happens next, in words.

    Returns:
        The report. `report.passed` says whether no check failed; each of `report.checks` has a value, its
        threshold, where it was worst, and if it failed the first segment where it goes wrong.

    Raises:
        ArtifactError: there is nothing of this project at the path; a damaged artifact is a failed check.
        HubError: the Hub did not deliver the artifact.
        UsageError: arguments that make no sense.

    Example:
        >>> import torch, timm, revsurgeon as rs
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> model = rs.rewire(model, example_inputs=torch.randn(2, 3, 32, 32))
        >>> rs.verify(model, torch.randn(2, 3, 32, 32), only=["equivalence"]).passed
        True
    """
    tell = progress or (lambda text: None)
    began = time.monotonic()
    _check_arguments(rtol, device, dtype, seeds, only)
    if isinstance(path_or_model, nn.Module):
        if stream:
            raise UsageError("--stream reads weights from files, and this is a network in memory.")
        from revsurgeon.checks.from_network import network_subject

        options = Options(rtol=rtol, seeds=seeds or Options.seeds)
        place = None if device == "auto" else _device(device)
        subject = network_subject(
            path_or_model,
            options,
            example_inputs=example_inputs,
            inputs=inputs or (),
            device=place,
            dtype=dtype,
        )
        with _uncompiled(subject):
            return report_of(subject, only, tell, began)
    from revsurgeon.checks.from_artifact import artifact_subject
    from revsurgeon.hub import artifact_path

    path = artifact_path(str(path_or_model), token=token, cache_dir=cache_dir, progress=tell)
    options = Options(
        offline=offline,
        rtol=rtol,
        seeds=seeds or Options.seeds,
        allow_python=allow_python,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        token=token,
        cache_dir=cache_dir,
    )
    subject = artifact_subject(
        path,
        options,
        name=str(path_or_model),
        into=into,
        example_inputs=example_inputs,
        inputs=inputs or (),
        device=_device(device),
        dtype=dtype,
    )
    policy = subject.manifest.recipe.checks if subject.manifest is not None else None
    subject.options = options.completed(policy, rtol=rtol, seeds=seeds)
    subject.by_block = stream
    if stream:
        from revsurgeon.checks.stream import report_by_block

        return report_by_block(subject, only, tell, began, _device(device))
    return report_of(subject, only, tell, began)


@contextlib.contextmanager
def _uncompiled(subject: Subject) -> Iterator[None]:
    """Run segments as they are: a compiler rounds in other places, which no threshold here allows for."""
    before = [chain.compile_options for chain in subject.chains]
    for chain in subject.chains:
        chain.compile_options = None
    try:
        yield
    finally:
        for chain, options in zip(subject.chains, before, strict=True):
            chain.compile_options = options


def checks_of(only: Sequence[str] | None) -> Iterator[tuple[str, Check]]:
    """The checks by name, in their order."""
    for name in CHECKS:
        if not only or name in only:
            yield name, importlib.import_module(f"revsurgeon.checks.{name}").CHECK


def report_of(subject: Subject, only: Sequence[str] | None, tell: Progress, began: float) -> Report:
    """Run the checks on a subject."""
    results: list[CheckResult] = []
    with worthwhile_threads(subject):
        for name, check in checks_of(only):
            if name in subject.options.skip and not only:
                reason = "the recipe leaves it out"
                results.append(CheckResult(name=name, verdict="skipped", reason=reason, seconds=0.0))
                continue
            tell(f"Checking {name}")
            results.append(result_of_check(name, check, subject, results))
    return made_report(subject, results, began)


@contextlib.contextmanager
def worthwhile_threads(subject: Subject) -> Iterator[None]:
    """Run a small network on one thread: others would only wait, and where cores are busy, long."""
    before = torch.get_num_threads()
    if subject.manifest is not None:
        sizes = [math.prod(record.shape) for record in subject.manifest.tensors.values()]
        if sum(sizes) < SMALL:
            torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def made_report(subject: Subject, results: list[CheckResult], began: float) -> Report:
    """The report of some results."""
    manifest = subject.manifest
    extent: Extent = "full" if [result.name for result in results] == list(CHECKS) else "partial"
    extent = "quick" if subject.quick else "by block" if subject.by_block else extent
    known: dict[str, Any] = {}
    if "network" in subject.__dict__:  # it was loaded
        alpha, beta = get_coefficients(subject.network)
        known = {
            "alpha": alpha,
            "beta": beta,
            "arithmetic": "exact" if subject.exact else "float",
            "device": str(subject.device),
            "dtype": str(subject.dtype).removeprefix("torch."),
        }
    elif manifest is not None:
        now = manifest.coefficients
        known = {"alpha": now.alpha, "beta": now.beta, "arithmetic": manifest.arithmetic}
    return Report(
        subject=subject.name,
        extent=extent,
        versions={"revsurgeon": importlib.metadata.version("revsurgeon"), "torch": torch.__version__},
        seconds=round(time.monotonic() - began, 3),
        checks=results,
        **known,
    )


def result_of_check(name: str, check: Check, subject: Subject, before: Sequence[CheckResult]) -> CheckResult:
    """Run one check; whatever its network raises is a failure of it, and not of this program."""
    began = time.monotonic()

    def skipped(reason: str) -> CheckResult:
        seconds = round(time.monotonic() - began, 3)
        return CheckResult(name=name, verdict="skipped", reason=reason, seconds=seconds)

    measurements: list[Measurement] = []
    notes: list[str] = []
    error, hint = None, None
    try:
        if check.needs == "network":
            if subject.path is not None and subject.manifest is None:
                return skipped("the artifact cannot be read")
            try:
                _ = subject.network
            except RevsurgeonError:
                if any(result.verdict == "failed" for result in before):
                    return skipped("the network cannot be loaded")
                raise
        for found in check.run(subject):
            if isinstance(found, Measurement):
                measurements.append(found)
            else:
                notes.append(found)
    except Skipped as reason:
        return skipped(str(reason))
    except RevsurgeonError as raised:
        error, hint = (
            " ".join(f"{type(raised).__name__}: {raised.what} {raised.where or ''}".split()),
            raised.hint,
        )
        measurements.append(Measurement(what=error, value=1.0, threshold=0.0, place=raised.where))
    except NETWORK_ERRORS as raised:
        error = refusal(raised)
        measurements.append(Measurement(what=error, value=1.0, threshold=0.0))
    seconds = time.monotonic() - began
    result = result_of(name, measurements, notes, seconds)
    if result.verdict == "failed":
        result = result.model_copy(update={"hint": hint or _hint(name, subject)})
    return result


def _hint(name: str, subject: Subject) -> str:
    """What to do about a failure."""
    if name == "integrity":
        return "Copy or download the artifact again, or convert the source again."
    if name == "provenance":
        return "If the weights were meant to change, save them with revsurgeon.save, which says so."
    if name in ("reversibility", "gradients", "training") and not subject.exact:
        return (
            "Float arithmetic loses too much at this depth and beta: convert with --arithmetic exact, or "
            'load with revsurgeon.load(path, arithmetic="exact").'
        )
    return "Convert the source again; if it fails again, please report this network."


def _device(name: str) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        raise UsageError(f"there is no {name} device here.", hint="Leave --device out, or use --device cpu.")
    return torch.device(name)


def _check_arguments(
    rtol: float | None, device: str, dtype: str | None, seeds: int | None, only: Sequence[str] | None
) -> None:
    if rtol is not None and not 0 <= rtol < float("inf"):
        raise UsageError(f"rtol = {rtol} is out of range.", hint="It is a relative error, such as 0.01.")
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is not one of {', '.join(DEVICES)}.")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    if seeds is not None and seeds < 1:
        raise UsageError(f"seeds = {seeds} is out of range.", hint="It must be at least 1.")
    for name in only or ():
        if name not in CHECKS:
            raise UsageError(f"there is no check {name!r}.", hint=f"The checks are {', '.join(CHECKS)}.")
