"""`revsurgeon convert`: from a pretrained network to a directory with the reversible one."""

from __future__ import annotations

import shlex
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output
from revsurgeon.cli.quantities import plural, size

if TYPE_CHECKING:
    from revsurgeon.artifact import Manifest
    from revsurgeon.recipes import Recipe

EXAMPLES = examples(
    ("The network that travels with the package; writes demo-dr2", "convert demo --mode dr2"),
    ("The same network as Re2TAL would have it", "convert demo --mode re2"),
    ("A checkpoint on the Hub", "convert facebook/videomae-small --mode dr2"),
    (
        "An architecture without its weights, whole blocks as steps",
        "convert timm:vit_tiny_patch16_224 --random-weights --granularity block --output vit",
    ),
    ("With a recipe of your own", "recipes show dr2-hold > my-recipe.yaml"),
    ("(see revsurgeon recipes --help)", "convert demo --recipe my-recipe.yaml --output demo-hold"),
    ("Once more, over what was written before", "convert demo --mode dr2 --force"),
)


def convert(
    source: options.Source,
    mode: options.Mode = None,
    recipe: options.Recipe = None,
    output: options.Output = None,
    revision: options.Revision = None,
    random_weights: options.RandomWeights = False,
    allow_pickle: options.AllowPickle = False,
    trust_remote_code: options.TrustRemoteCode = False,
    granularity: options.Granularity = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    merge: options.Merge = None,
    arithmetic: options.Arithmetic = None,
    inputs: options.Inputs = None,
    dtype: options.Dtype = None,
    max_shard_size: options.MaxShardSize = "5GB",
    force: options.Force = False,
    no_verify: options.NoVerify = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Rewire a pretrained network into a reversible one and write it.

    Writes a directory with the weights under their own names, a manifest of what was done, and a model
    card; revsurgeon.load() turns it into a module. Before that the rewired network is checked against
    the source on example inputs.
    """
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        checked = _recipe(recipe, mode)  # before torch is imported or anything is downloaded
        out.step("Starting torch")
        import revsurgeon as rs

        path = rs.convert(
            source,
            checked.mode,
            output=output,
            recipe=checked,
            revision=revision,
            random_weights=random_weights,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            arithmetic=arithmetic,
            granularity=granularity,
            include=include or None,
            exclude=exclude or None,
            merge=merge,
            inputs=inputs or None,
            dtype=dtype,
            max_shard_size=max_shard_size,
            force=force,
            verify=not no_verify,
            progress=out.step,
        )
        from revsurgeon.artifact import read_manifest

        manifest = read_manifest(path)
        out.result(document(path, manifest), *summary(path, manifest), brief=str(path))


def _recipe(name: str | None, mode: str | None) -> Recipe:
    from revsurgeon.errors import UsageError
    from revsurgeon.recipes import load_recipe

    recipe = load_recipe(name, mode or "dr2")
    if mode is not None and recipe.mode != mode:
        raise UsageError(
            f"--mode {mode} contradicts the recipe {recipe.name!r}, whose mode is {recipe.mode}.",
            hint="Leave --mode out, or take another recipe: revsurgeon recipes list",
        )
    return recipe


def document(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Return a conversion's result for scripts: the manifest, with the tensors counted, not listed."""
    data = manifest.model_dump(mode="json")
    data["tensors"] = len(data["tensors"])
    return {"output": str(path), "bytes": _bytes(path), "manifest": data}


def summary(path: Path, manifest: Manifest) -> list[Any]:
    """Return a conversion's result for people: what was made, from what, how, and what comes next."""
    from rich.table import Table
    from rich.text import Text

    from revsurgeon.cli.recipes import path_of_coefficients

    recipe = manifest.recipe
    rows = [
        ("source", _origin(as_data(manifest.source))),
        ("recipe", f"{recipe.name} ({recipe.mode}), {path_of_coefficients(recipe)}"),
        (
            "coefficients",
            f"alpha {manifest.coefficients.alpha:g}, beta {manifest.coefficients.beta:g}, "
            f"{manifest.arithmetic} arithmetic",
        ),
    ]
    for chain in manifest.chains:
        segments = sum(chain.segments)
        rows.append(
            (
                "chain",
                f"{chain.name}: {plural(len(chain.blocks), 'block')}, {plural(segments, 'segment')}, "
                f"merge {chain.merge}",
            )
        )
    rows += [
        ("check", f"{name.replace('_', ' ')}: {_verdict(value)}") for name, value in manifest.checks.items()
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    quoted = shlex.quote(str(path))
    return [
        Text.assemble((str(path), "bold green"), f"  {size(_bytes(path))}"),
        table,
        "",
        "Next:",
        f'  python -c "import revsurgeon; model = revsurgeon.load({str(path)!r})"',
        f"  cat {shlex.quote(str(path / 'README.md'))}" if path.is_dir() else f"  ls -l {quoted}",
    ]


def as_data(record: Any) -> dict[str, Any]:
    """Return a record (data class, pydantic model or dictionary) as plain data."""
    if is_dataclass(record) and not isinstance(record, type):
        return asdict(record)
    if hasattr(record, "model_dump"):
        return dict(record.model_dump(mode="json"))
    return dict(record)


def _origin(source: dict[str, Any]) -> str:
    parts = [str(source["spec"])]
    if source.get("commit"):
        parts.append(f"commit {str(source['commit'])[:12]}")
    parts.append(f"{source['weights']} weights")
    return ", ".join(parts)


def _verdict(value: Any) -> str:
    if isinstance(value, bool):
        return "passed" if value else "FAILED"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_verdict(inner)}" for key, inner in value.items())
    return str(value)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
