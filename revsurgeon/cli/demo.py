"""`revsurgeon demo`: a guided tour on the network that travels with the package."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output

if TYPE_CHECKING:
    from torch import nn

EXAMPLES = examples(
    ("The tour; it leaves nothing behind", "demo"),
    ("Shorter, and keep the converted network", "demo --steps 5 --output demo-tour"),
    ("The same tour in the other mode, as JSON", "demo --mode re2 --steps 5 --json"),
)

_TEST_IMAGES = 500


def demo(
    mode: options.Mode = None,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Finetuning steps to take.")] = 40,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Keep the converted network here.", show_default=False
        ),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Take a guided tour: inspect, convert, verify and finetune a small network.

    The network is shipped in the package, so the tour needs no network connection.
    """
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out, ExitStack() as stack:
        mode = mode or "dr2"
        target = output
        if target is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="revsurgeon-demo-"))
            target = Path(folder) / f"demo-{mode}"
        report = {
            "inspect": _inspect(out),
            "convert": _convert(out, target, mode, force=force),
            "verify": _verify(out, target),
            "errmap": _errmap(out, target, keep=output is not None),
            "finetune": _finetune(out, target, steps),
        }
        out.print("", "Now your own network: revsurgeon inspect SOURCE, revsurgeon convert SOURCE")
        after = report["finetune"]["accuracy_after"]
        out.result(report, brief=f"accuracy {after:.3f}")


def _inspect(out: Output) -> dict[str, Any]:
    out.heading("1. What can be rewired")
    out.print(
        "A vision transformer, really trained on handwritten digits, is shipped with the package.",
        "$ revsurgeon inspect demo",
    )
    out.step("Importing torch and following one forward pass")
    import revsurgeon as rs
    from revsurgeon.sources import resolve

    source = resolve("demo", random_weights=True)
    anatomy = rs.inspect(source.module("meta"), source.inputs.example(device="meta"))
    from revsurgeon.cli.anatomy_tree import tree

    out.print(tree(source.name, anatomy, everything=False))
    return {"segments": len(anatomy.segments), "chains": len(anatomy.chains), "share": anatomy.share}


def _convert(out: Output, target: Path, mode: str, *, force: bool) -> dict[str, Any]:
    from revsurgeon.artifact import read_manifest
    from revsurgeon.cli.conversion_summary import document, summary

    out.heading("2. The surgery")
    out.print(
        "Each residual module gets a second stream beside it. At alpha 1, beta 0 the network is the",
        "pretrained one, bit for bit; the recipe says where finetuning starts from there.",
        f"$ revsurgeon convert demo --mode {mode}",
    )
    import revsurgeon as rs

    path = rs.convert("demo", mode, output=target, force=force, progress=out.step)
    manifest = read_manifest(path)
    out.print(*summary(path, manifest, out.width))
    return document(path, manifest)


def _verify(out: Output, path: Path) -> dict[str, Any]:
    out.heading("3. The proof")
    out.print(
        "Every check has a value and a threshold, and names the segment where it goes wrong, if it does.",
        "In exact arithmetic reversible gradients equal stored ones, so the threshold is 0.",
        f"$ revsurgeon verify {path.name}",
    )
    import revsurgeon as rs
    from revsurgeon.cli import tour
    from revsurgeon.cli.check_table import table

    with tour.one_thread():
        report = rs.verify(path, progress=out.step)
    out.print(table(report))
    return report.to_dict()


def _errmap(out: Output, path: Path, *, keep: bool) -> dict[str, Any]:
    out.heading("4. Where gradients are precise")
    out.print(
        "Float gradients are precise where beta is large, and the output is still the pretrained network's",
        "where it is small. Exact arithmetic takes away the first half of that dilemma.",
        f"$ revsurgeon errmap {path.name} --grid 5",
    )
    import revsurgeon as rs
    from revsurgeon.cli.errmap_cells import maps
    from revsurgeon.cli.errmap_words import recommendation

    found = rs.errmap(path, grid=5, tell=out.step)
    if out.for_people:
        out.print(*maps(found, "relative", None, out.width, coloured=out.on_terminal), *recommendation(found))
    report = found.to_dict()
    if keep:
        report["picture"] = str(found.plot(path.with_name(f"{path.name}-errmap.png")))
        out.print(f"The picture: {report['picture']}")
    return report


def _finetune(out: Output, path: Path, steps: int) -> dict[str, Any]:
    import revsurgeon as rs
    from revsurgeon.cli import tour

    out.heading("5. Finetuning")
    out.print(
        "A new domain: printed digits, shifted and noisy. It is trained like any other module; alpha and",
        "beta stay where they are.",
        ">>> model = revsurgeon.load(path)",
        ">>> loss.backward(); optimizer.step()",
    )
    out.step("Loading what was written")
    model = rs.load(path)
    images, labels = tour.printed_digits(_TEST_IMAGES, seed=1)
    with tour.one_thread():
        memory = _memory(model, images[:64])
        before = tour.accuracy(model, images, labels)
        out.step(f"Taking {steps} steps")
        taken = list(tour.finetune(model, steps))
        after = tour.accuracy(model, images, labels)
    shown = range(0, steps, max(1, steps // 8))
    out.print(*(_line(taken[index]) for index in sorted({*shown, steps - 1})))
    out.print(
        f"Accuracy on printed digits it has not seen: {before:.3f} before, {after:.3f} after.",
        f"Activations kept for the backward pass of 64 images: {memory['reversible']:,} bytes reversible, "
        f"{memory['stored']:,} bytes stored.",
    )
    return {
        "steps": [vars(step_taken) for step_taken in taken],
        "accuracy_before": before,
        "accuracy_after": after,
        "bytes_kept_for_backward": memory,
    }


def _memory(model: nn.Module, images: Any) -> dict[str, int]:
    import revsurgeon as rs
    from revsurgeon.cli.tour import bytes_kept_for_backward

    reversible = bytes_kept_for_backward(model, images)
    with rs.stored_activations(model):
        stored = bytes_kept_for_backward(model, images)
    return {"reversible": reversible, "stored": stored}


def _line(step: Any) -> str:
    return f"  step {step.number:3d}   loss {step.loss:.3f}   alpha {step.alpha:.3f}   beta {step.beta:.3f}"
