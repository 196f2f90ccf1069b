"""Integrity: the files hold what the manifest says, all of it, and numbers only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from revsurgeon.artifact import Manifest
from revsurgeon.artifact.names import CONFIG
from revsurgeon.artifact.read import each_tensor
from revsurgeon.artifact.tensor_bytes import tensor_bytes
from revsurgeon.checks.check import Check, Found, Skipped
from revsurgeon.checks.report import Measurement
from revsurgeon.checks.seal import RECORD, seal_of_structure, seal_of_weights
from revsurgeon.checks.subject import Subject
from revsurgeon.errors import ArtifactError, RevsurgeonError


def run(subject: Subject) -> Found:
    """Compare every byte and every figure of the files with the manifest; all thresholds are 0.

    Hashes, names, shapes and types of the tensors; no NaN, and no infinity outside of masks; the manifest
    in the header of every weight file equal to manifest.yaml; config.json equal to the manifest's;
    coefficients where the schedule says that they are; and, where the manifest records a verification, that
    it was of this very artifact.
    """
    if subject.path is None:
        raise Skipped("a network in memory has no files")
    yield _count("problems that keep the artifact from being read", _one(subject.path, subject.unreadable))
    if subject.manifest is None:
        return
    manifest = subject.manifest
    changed, not_numbers = [], []
    try:
        for name, tensor in each_tensor(subject.path, manifest):
            if hashlib.sha256(tensor_bytes(tensor)).hexdigest() != manifest.tensors[name].sha256:
                changed.append(name)
            fault = _not_a_number(tensor)
            if fault is not None:
                not_numbers.append(f"{name}: {fault}")
    except ArtifactError as error:
        yield _count("disagreements of the weight files and the manifest", _one(subject.path, str(error)))
        return
    yield _count("disagreements of the weight files and the manifest", {})
    yield _count("tensors whose bytes are not those that were recorded", dict.fromkeys(changed, "its hash"))
    yield _count(
        "tensors with a NaN or an infinity", dict(text.split(": ", 1) for text in sorted(not_numbers))
    )
    yield _count("disagreements inside the manifest", disagreements(manifest, subject.path))
    if not subject.by_block:
        yield _count("problems that keep the network from being built and loaded", _loading(subject))


def _count(what: str, problems: Mapping[str, str]) -> Measurement:
    """How many problems there are; the first one is the place, and up to five are told."""
    told = [f"{place} ({problem})" if problem else place for place, problem in problems.items()]
    shown = ", ".join(told[:5]) + (f" and {len(told) - 5} more" if len(told) > 5 else "")
    return Measurement(
        what=what,
        value=float(len(problems)),
        threshold=0.0,
        place=next(iter(problems), None),
        detail=shown or None,
    )


def _one(path: Path, problem: str | None) -> dict[str, str]:
    return {} if problem is None else {str(path): " ".join(problem.split())}


def _not_a_number(tensor: torch.Tensor) -> str | None:
    """What is wrong with a tensor's values; infinities are right in a mask, whose other values are zeros."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    if tensor.element_size() == 1:  # few operations know the types of eight bits
        tensor = tensor.float()
    if bool(tensor.isnan().any()):
        return "holds NaN"
    infinite = tensor.isinf()
    if bool(infinite.any()) and bool((tensor[~infinite] != 0).any()):
        return "holds an infinity"
    return None


def disagreements(manifest: Manifest, path: Path) -> dict[str, str]:
    """What a manifest says twice and not the same way."""
    found = {}
    state, now = manifest.schedule_state, manifest.coefficients
    if state is not None:
        wanted = _of_schedule(state)
        if wanted is None:
            found["schedule_state"] = "not the state of a schedule"
        elif max(abs(wanted[0] - now.alpha), abs(wanted[1] - now.beta)) > 1e-9:
            found["coefficients"] = (
                f"({now.alpha:g}, {now.beta:g}); by the schedule ({wanted[0]:g}, {wanted[1]:g})"
            )
    config = path / CONFIG
    there = path.is_dir() and manifest.config is not None and config.is_file()
    if there and config.read_bytes() != (manifest.config or "").encode():
        found[CONFIG] = "not the config in the manifest"
    record = manifest.checks.get(RECORD)
    if isinstance(record, Mapping):
        for key, wanted_seal in (("of", seal_of_structure), ("weights", seal_of_weights)):
            if key in record and record[key] != wanted_seal(manifest):
                what = "the chains, the coefficients or the architecture" if key == "of" else "the weights"
                found[f"checks.{RECORD}"] = f"recorded before {what} were changed; verify again with --stamp"
    return found


def _of_schedule(state: Mapping[str, Any]) -> tuple[float, float] | None:
    """The coefficients that a schedule's state stands for."""
    from revsurgeon.reversible.schedule import CoefficientSchedule

    schedule = CoefficientSchedule.__new__(CoefficientSchedule)
    try:
        schedule.steps_done, schedule.end_step = int(state["steps_done"]), int(state["end_step"])
        schedule.start, schedule.end = tuple(state["start"]), tuple(state["end"])
        schedule.policy, schedule.order = state["policy"], state["order"]
        schedule.update_every = int(state["update_every"])
        return schedule.coefficients_at(schedule.steps_done)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _loading(subject: Subject) -> dict[str, str]:
    try:
        _ = subject.network
    except RevsurgeonError as error:
        place = (error.where or str(subject.path)).splitlines()[0]
        return {place: error.what}
    return {}


CHECK = Check(run, needs="files")
