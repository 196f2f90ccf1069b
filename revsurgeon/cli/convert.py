"""`revsurgeon convert`: from a pretrained network to a directory with the reversible one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from revsurgeon.recipes import Recipe
    from revsurgeon.rehearsal import Rehearsal

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
    ("Without weights: what would be written", "convert timm:vit_small_patch16_224 --dry-run"),
    ("Start as near to the source as 1 %", "convert demo --start auto --max-drift 0.01 --output demo-near"),
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
    start: options.Start = None,
    max_drift: options.MaxDrift = None,
    inputs: options.Inputs = None,
    real_input: options.RealInput = None,
    dtype: options.Dtype = None,
    max_shard_size: options.MaxShardSize = "5GB",
    force: options.Force = False,
    no_verify: options.NoVerify = False,
    dry_run: options.DryRun = False,
    push_to_hub: options.PushToHub = None,
    private: options.Private = False,
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
        point = _point(start)
        from revsurgeon.recipes.overrides import overridden

        checked = overridden(
            checked,
            arithmetic=arithmetic,
            granularity=granularity,
            include=include or None,
            exclude=exclude or None,
            merge=merge,
            start=point,
            max_drift=max_drift,
        )
        out.step("Starting torch")
        if dry_run:
            from revsurgeon.rehearsal import architecture_of, rehearse

            done = rehearse(
                architecture_of(
                    source,
                    revision=revision,
                    allow_pickle=allow_pickle,
                    trust_remote_code=trust_remote_code,
                    tell=out.step,
                ),
                checked,
                output=output,
                inputs=inputs or (),
                dtype=dtype,
                max_shard_size=max_shard_size,
                force=force,
                tell=out.step,
            )
            out.result(done.to_dict(), *rehearsed(done), brief=str(done.output))
            return
        give_freed_memory_back()
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
            inputs=inputs or None,
            real_input=real_input,
            dtype=dtype,
            max_shard_size=max_shard_size,
            force=force,
            verify=not no_verify,
            progress=out.step,
        )
        from revsurgeon.artifact import read_manifest
        from revsurgeon.cli.conversion_summary import document, next_steps, summary

        manifest = read_manifest(path)
        told, place = document(path, manifest), []
        if push_to_hub is not None:
            told["url"] = rs.push(path, push_to_hub, private=private or None, progress=out.step)
            place = [f"On the Hub:  {told['url']}"]
        out.result(
            told,
            *summary(path, manifest, out.width),
            *next_steps(path, manifest),
            *place,
            brief=str(path),
        )


def rehearsed(done: Rehearsal) -> list[RenderableType]:
    """What a dry run says to people."""
    from revsurgeon.cli.anatomy_tree import tree
    from revsurgeon.cli.quantities import plural, size

    room = f"{size(done.free)} are free" if done.fits else f"only {size(done.free)} are free"
    files = plural(done.files, "file")
    return [
        tree(done.name, done.anatomy, everything=False),
        "",
        f"Would write {done.output}: {plural(done.tensors, 'tensor')}, {size(done.bytes)} in {files}; {room}",
        f"Recipe {done.recipe.name}. Not done without weights: all checks, and what is measured "
        "(arithmetic or start: auto).",
    ]


def give_freed_memory_back() -> None:
    """Have glibc return large blocks to the system as soon as they are freed.

    Its threshold for that grows with the blocks that a program frees. The gradients that the check makes,
    one after the other, would then leave behind as much memory as the weights take. For other C libraries
    there is nothing to do. (mallopt(3), M_MMAP_THRESHOLD)
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2**20)


def _point(text: str | None) -> tuple[float, float] | Literal["auto"] | None:
    """Return the start point that an option names."""
    from revsurgeon.errors import UsageError

    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        alpha, beta = map(float, text.split(","))
    except ValueError:
        raise UsageError(
            f"--start {text!r} is neither auto nor ALPHA,BETA.", hint="As in --start 0.9,0.1"
        ) from None
    return alpha, beta


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
