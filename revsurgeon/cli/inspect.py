"""`revsurgeon inspect`: what can be rewired in a network, and why the rest cannot. Needs no weights."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from revsurgeon.cli import options
from revsurgeon.cli.options import examples
from revsurgeon.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from revsurgeon.anatomy.report import Anatomy
    from revsurgeon.sources import Source

EXAMPLES = examples(
    ("The network that travels with the package", "inspect demo"),
    ("A network of a billion parameters, without its weights", "inspect timm:vit_giant_patch14_dinov2"),
    ("Everything that was left alone, with the reason", "inspect torchvision:resnet18 --all"),
    ("The function that each segment runs", "inspect demo --code"),
    ("On other inputs than the config says", "inspect timm:resnet18 --input x=1x3x64x64"),
    ("A repository on the Hub (reads its config only)", "inspect facebook/videomae-small"),
    ("For a script", "inspect demo --json"),
)


def inspect(
    source: options.Source,
    show_all: options.All = False,
    code: options.Code = False,
    inputs: options.Inputs = None,
    revision: options.Revision = None,
    allow_pickle: options.AllowPickle = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show what can be rewired in a network, and why the rest cannot.

    Chains, their blocks and segments, the share of the parameters that is inside chains, and a reason
    for everything left alone. Needs no weights, and mostly no memory for them either.
    """
    with Output(as_json=as_json, quiet=quiet, debug=debug) as out:
        out.step("Starting torch")
        from revsurgeon.rehearsal import anatomy_of, architecture_of

        found = architecture_of(
            source,
            revision=revision,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            tell=out.step,
        )
        anatomy, device = anatomy_of(found, inputs or [], out.step)
        from revsurgeon.cli import anatomy_tree

        options_given = {
            "--input": inputs,
            "--revision": revision,
            "--allow-pickle": allow_pickle,
            "--trust-remote-code": trust_remote_code,
        }

        out.result(
            _document(found, anatomy, device, code),
            anatomy_tree.tree(found.name, anatomy, everything=show_all),
            *(
                anatomy_tree.listings(anatomy, everything=show_all, highlighted=out.on_terminal)
                if code
                else ()
            ),
            "",
            _next(source, anatomy, options_given, show_all=show_all),
            brief=anatomy_tree.headline(anatomy),
        )


def _next(source: str, anatomy: Anatomy, given: Mapping[str, object], *, show_all: bool) -> str:
    """Return what to do next, with the options that were needed to read this source."""
    words = [source]
    for option, value in given.items():
        if value is True:
            words.append(option)
        elif value:
            for one in value if isinstance(value, list) else [value]:
                words += [option, str(one)]
    if anatomy.chains:
        return f"Convert it: revsurgeon convert {shlex.join(words)} --mode dr2"
    if anatomy.skipped and not show_all:
        return f"See everything that was looked at: revsurgeon inspect {shlex.join(words)} --all"
    return "Reversible rewiring needs blocks of the form post(F(x) + x)."


def _document(source: Source, anatomy: Anatomy, device: str, code: bool) -> dict[str, object]:
    return {
        "name": source.name,
        "source": source.provenance.to_dict(),
        "device": device,
        **anatomy.to_dict(code=code),
    }
