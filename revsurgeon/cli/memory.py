"""`revsurgeon memory`: what a training step will take, before there is a GPU to try it on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output

if TYPE_CHECKING:
    from revsurgeon.memory.plan import MemoryPlan

EXAMPLES = examples(
    ("The network that travels with the package", "memory demo --batch 64"),
    ("A picture", "memory timm:vit_small_patch16_224 --batch 32 --plot vit.png"),
    ("The largest batch for 24 GiB", "memory timm:vit_small_patch16_224 --amp bf16 --fit 24GiB"),
    ("The longest clip for it", "memory transformers:videomae --fit 24GiB --vary frames"),
    ("Adapters only, beside everything", "memory transformers:videomae --batch 8 --lora-rank 16"),
    ("States shared out between 8 GPUs", "memory timm:vit_large_patch16_224 --zero 2 --world-size 8"),
)


def memory(
    source: options.Network,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Samples of one forward. Default: 1.")
    ] = None,
    frames: Annotated[int | None, typer.Option(metavar="N", help="Frames of a clip.")] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="N", help="Height and width of an image or of a clip's frames.")
    ] = None,
    inputs: options.Inputs = None,
    amp: options.Amp = "none",
    optimizer: Annotated[
        str, typer.Option(metavar="NAME", help="adamw, sgd (with momentum) or adam8bit.")
    ] = "adamw",
    accumulate: options.Accumulate = 1,
    zero: Annotated[
        int,
        typer.Option(
            metavar="STAGE",
            min=0,
            max=3,
            help="Share out between processes: 1 optimizer states, 2 gradients too, 3 parameters too.",
        ),
    ] = 0,
    world_size: Annotated[int, typer.Option(metavar="N", min=1, help="Number of these processes.")] = 1,
    lora_rank: Annotated[
        int | None,
        typer.Option(metavar="R", help="Also with all weights frozen but adapters of this rank (LoRA)."),
    ] = None,
    strategy: options.Strategy = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Search for the largest batch that fits into so much memory, as in 24GiB."
        ),
    ] = None,
    vary: Annotated[
        str, typer.Option(metavar="WHAT", help="With --fit: enlarge batch, frames or image-size.")
    ] = "batch",
    device: Annotated[
        str, typer.Option(metavar="KIND", help="What is planned for: cuda or cpu. Neither is needed.")
    ] = "cuda",
    recipe: options.Recipe = None,
    revision: options.Revision = None,
    allow_pickle: options.AllowPickle = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_python: options.AllowPython = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw stacked bars: a .png, .svg or .pdf file.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Predict the memory of a training step, for every way to train, without weights and without a GPU.

    Stored activations, checkpoints around blocks, and reversible chains: what each takes at its peak, for
    what, and in which module. With --fit, the largest size that fits. Sizes are in binary units.
    """
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        from revsurgeon.memory.sizes import Sizes, check_vary, parse_bytes

        Sizes(batch, frames, image_size)  # what is wrong with them is told before torch is imported
        check_vary(vary)
        if fit is not None:
            parse_bytes(fit)
        if plot is not None:
            from revsurgeon.errormap.pictures import check_picture

            check_picture(plot)
        out.step("Starting torch")
        import revsurgeon as rs

        found = rs.estimate_memory(
            source,
            inputs=inputs or None,
            batch=batch,
            frames=frames,
            image_size=image_size,
            strategies=strategy or None,
            optimizer=optimizer,
            amp=amp,
            accumulate=accumulate,
            zero=zero,
            world_size=world_size,
            lora_rank=lora_rank,
            device=device,
            fit=fit,
            vary=vary,
            recipe=recipe,
            revision=revision,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            allow_python=allow_python,
            tell=out.step,
        )
        if plot is not None:
            found.plot(plot)
        document = found.to_dict() | ({"plot": str(plot)} if plot is not None else {})
        out.result(document, *_for_people(out, found, plot), brief=_brief(found))


def _for_people(out: Output, found: MemoryPlan, plot: Path | None) -> list[Any]:
    from revsurgeon.cli.memory_tables import fits_table, heading, peaks_tables

    if not out.for_people:
        return []
    lines: list[Any] = [heading(found), *peaks_tables(found)]
    if found.fits:
        lines += ["", fits_table(found)]
    if found.recommendation:
        lines += ["", found.recommendation]
    lines += ["", *found.notes]
    return [*lines, f"plot: {plot}"] if plot is not None else lines


def _brief(found: MemoryPlan) -> str:
    """With --quiet: the least peak in bytes, or the largest size that fits."""
    if found.fits:
        return str(max((fit.largest or 0) for fit in found.fits))
    return str(min(row.peak for row in found.rows))
