"""How the result of a conversion looks: for people, and as the document for scripts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.checks.seal import RECORD
from revsurgeon.cli.output import columns
from revsurgeon.cli.quantities import plural, size
from revsurgeon.cli.recipes import path_of_coefficients

if TYPE_CHECKING:
    from rich.console import RenderableType

    from revsurgeon.artifact import Manifest


def document(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the result for scripts: the manifest, with the tensors counted, not listed."""
    data = manifest.model_dump(mode="json")
    data["tensors"] = len(data["tensors"])
    return {"output": str(path), "bytes": _bytes(path), "manifest": data}


def summary(path: Path, manifest: Manifest, width: int | None) -> list[RenderableType]:
    """Return what was made, from what, how, and what was checked; a line each, wrapped to `width`."""
    from rich.text import Text

    recipe, now = manifest.recipe, manifest.coefficients
    rows = [
        ("source", _origin(manifest.source)),
        ("recipe", f"{recipe.name} ({recipe.mode}), {path_of_coefficients(recipe)}"),
        ("starts at", f"alpha {now.alpha:g}, beta {now.beta:g}, {manifest.arithmetic} arithmetic"),
    ]
    for chain in manifest.chains:
        blocks, segments = plural(len(chain.blocks), "block"), plural(sum(chain.segments), "segment")
        rows.append(("chain", f"{chain.name}: {blocks}, {segments}, merge {chain.merge}"))
    rows += [("checked", line) for line in _checks(manifest.checks)]
    headline = Text.assemble((str(path), "bold green"), f"  {size(_bytes(path))}")
    return [headline, columns(rows, width)]


def next_steps(path: Path, manifest: Manifest) -> list[str]:
    """Return how the artifact is loaded, as a command to copy, and where its model card is."""
    arguments = [json.dumps(str(path))]  # in double quotes, as the shell needs the single ones
    if manifest.build.get("library") == "python":
        arguments.append("allow_python=True")
    program = f"import revsurgeon; model = revsurgeon.load({', '.join(arguments)})"
    return [
        "",
        f"Load it:     python -c {shlex.quote(program)}",
        f"Model card:  {path / 'README.md'}",
    ]


def _origin(source: Mapping[str, Any]) -> str:
    parts = [str(source["spec"])]
    if source.get("commit"):
        parts.append(f"commit {str(source['commit'])[:12]}")
    parts.append(f"{source['weights']} weights")
    return ", ".join(parts)


def _checks(checks: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each finding; a check that this file has no words for is shown as it stands."""
    for name, found in checks.items():
        if name == RECORD and isinstance(found, Mapping):
            yield f"{', '.join(found['checks'])}; all of it: revsurgeon verify PATH"
            continue
        if name != "self_check" or not isinstance(found, Mapping):
            yield f"{name.replace('_', ' ')}: {found}"
            continue
        batches = " and ".join(map(str, found["equal_at_1_0"]))
        yield f"equal to the source at alpha 1, beta 0, bit for bit, on batches of {batches}"
        yield f"{found['drift']:.2g} relative distance from the source's output at the start"
        if found.get("start") is not None:
            yield _search(found["start"])
        if found["float_gradient_error"] is not None:
            yield f"{found['float_gradient_error']:.2g} relative error of float gradients at the start"


def _search(found: Mapping[str, Any]) -> str:
    """Return what was measured to find the start."""
    measured = ", ".join(f"{rung['drift']:.2g} at beta {rung['beta']:g}" for rung in found["measured"])
    limit = f"at most {found['max_drift']:g} was allowed"
    if found["met"]:
        return f"start searched for: {measured}; {limit}"
    return f"start searched for: none is near enough ({measured}; {limit}), so the nearest was taken"


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
