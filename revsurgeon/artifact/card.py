"""The model card: README.md with the Hub's front matter, what was done, and how to load it."""

from __future__ import annotations

import re
from typing import Any

from revsurgeon.artifact.manifest import Manifest
from revsurgeon.recipes.strict_yaml import dump_yaml

_HEADING = "## Checks"
_SECTION = re.compile(rf"^{_HEADING}$.*?(?=\n## |\Z)", re.MULTILINE | re.DOTALL)

_ABOUT = ("extent", "revsurgeon", "torch", "device", "dtype")
"""What a record of a verification says about itself."""

_CITATIONS = """\
- Chen Zhao, Shuming Liu, Karttikeya Mangalam, Bernard Ghanem. *Re2TAL: Rewiring Pretrained Video
  Backbones for Reversible Temporal Action Localization.* CVPR 2023.
- Chen Zhao, Shuming Liu, Karttikeya Mangalam, Guocheng Qian, Fatimah Zohra, Abdulmohsen Alghannam,
  Jitendra Malik, Bernard Ghanem. *Dr2Net: Dynamic Reversible Dual-Residual Networks for
  Memory-Efficient Finetuning.* CVPR 2024."""


def model_card(manifest: Manifest, name: str) -> str:
    """The text of README.md; the same for equal manifests.

    Args:
        manifest: what was done. Of `checks`, each entry becomes a row of the check table: a mapping with
            `passed` and further figures, or a plain value.
        name: the artifact's name, used as the title and in the commands.
    """
    sections = [
        f"---\n{dump_yaml(_front_matter(manifest))}---",
        f"# {_line(name)}",
        _summary(manifest),
        f"## Load it\n\n```python\nimport revsurgeon\n\nmodel = revsurgeon.load({name!r})\n```",
        _plain_loading(manifest),
        f"## Recipe\n\n{_fenced(manifest.recipe.to_yaml(), 'yaml')}",
        f"## Provenance\n\n{_table(('', ''), _provenance(manifest))}",
        _checks_section(manifest),
        f"## Sources of the method\n\n{_CITATIONS}",
    ]
    return "\n\n".join(sections) + "\n"


def with_checks(card: str, manifest: Manifest) -> str:
    """A card, perhaps edited by someone, with its section of checks replaced by the manifest's; or added."""
    section = _checks_section(manifest)
    replaced, count = _SECTION.subn(lambda _: f"{section}\n", card, count=1)
    return replaced if count else f"{card.rstrip()}\n\n{section}\n"


def _checks_section(manifest: Manifest) -> str:
    return f"{_HEADING}\n\n{_checks(manifest)}"


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "revsurgeon"}
    library = manifest.build.get("library")
    tags = ["revsurgeon", "reversible", "memory-efficient-finetuning", manifest.recipe.mode]
    front["tags"] = tags + ([library] if library in ("timm", "transformers", "torchvision") else [])
    if manifest.source.get("kind") == "hub" and manifest.source.get("repo_id"):
        front["base_model"] = manifest.source["repo_id"]
    return front


def _summary(manifest: Manifest) -> str:
    segments = sum(sum(chain.segments) for chain in manifest.chains)
    now = manifest.coefficients
    spec = _code(manifest.source.get("spec", "A network"))
    size = f"{_count(segments, 'segment')} in {_count(len(manifest.chains), 'chain')}"
    return f"""\
{spec}, rewired by revsurgeon {manifest.revsurgeon} into a reversible network:
{size}, whose activations are rebuilt during backward instead of being
stored. The weights keep the names that they have in the source.

Coefficients: alpha = {now.alpha!r}, beta = {now.beta!r}. Arithmetic: {manifest.arithmetic}.
At alpha = 1, beta = 0 the rewired network computes what the plain one does, bit for bit.

The license is the source's; see there."""


def _plain_loading(manifest: Manifest) -> str:
    if len(manifest.files) > 1:
        load = (
            "from pathlib import Path\n\nfrom safetensors.torch import load_file\n\nweights = {}\n"
            'for file in sorted(Path(".").glob("model-*.safetensors")):\n    weights |= load_file(file)\n'
        )
    else:
        load = 'from safetensors.torch import load_file\n\nweights = load_file("model.safetensors")\n'
    code = f"{load}plain_network.load_state_dict(weights, strict=True)\n"
    return f"The weights also load into the network that was not rewired:\n\n{_fenced(code, 'python')}"


def _provenance(manifest: Manifest) -> list[tuple[str, str]]:
    rows = [(key, _cell(value)) for key, value in manifest.source.items() if value not in (None, {}, [])]
    build = {key: value for key, value in manifest.build.items() if key != "arguments"}
    return [*rows, ("architecture", _cell(build)), ("revsurgeon", _cell(manifest.revsurgeon))]


def _checks(manifest: Manifest) -> str:
    if not manifest.checks:
        return "None were run at conversion."
    rows = []
    for name, value in manifest.checks.items():
        if isinstance(value, dict) and isinstance(value.get("checks"), dict):
            rows += _verified(value)
            continue
        figures = dict(value) if isinstance(value, dict) else {"value": value}
        passed = figures.pop("passed", None)
        result = {True: "passed", False: "**failed**"}.get(passed, "") if isinstance(passed, bool) else ""
        rows.append((_line(name), result, _cell(figures)))
    return _table(("check", "result", "figures"), rows)


def _verified(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """A row for each check of a verification, and one for the whole."""
    rows = []
    for name, found in record["checks"].items():
        told = found if isinstance(found, dict) else {"verdict": found}
        figures = {key: value for key, value in told.items() if key != "verdict" and value is not None}
        rows.append((_line(name), _verdict(told.get("verdict")), _cell(figures)))
    about = {key: record[key] for key in _ABOUT if record.get(key) is not None}
    return [*rows, ("all", _verdict("passed" if record.get("passed") else "failed"), _cell(about))]


def _verdict(verdict: object) -> str:
    return "**failed**" if verdict == "failed" else _line(str(verdict))


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{_line(str(key))}: {_code(item)}" for key, item in value.items())
    return _code(value)


def _code(value: Any) -> str:
    """As inline code that stays inside its table cell, whatever is in it."""
    text = _line(str(value)).replace("`", "'")
    return f"`{text}`" if text else ""


def _line(text: str) -> str:
    """Text on one line that does not end a table cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}{fence}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
