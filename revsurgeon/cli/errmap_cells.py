"""A map in the terminal: a cell a point, coloured where there are colours, with its number in any case."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from revsurgeon.errormap.short import short_number

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from revsurgeon.errormap import ErrorMap

# Nine steps of cividis: dark blue to yellow, even in grey.
_SHADES = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#fee838",
)  # fmt: skip
_DARK = 5  # so many of them need white letters
_CELL = 6
_LABEL = 7
_GAP = 4

_TITLES = {
    "relative": "relative gradient error",
    "cosine": "cosine of the gradients",
    "max_abs": "largest gradient error",
    "mean_abs": "mean gradient error",
    "mse": "mean squared gradient error",
}


def maps(
    found: ErrorMap, metric: str, chain: str | None, width: int | None, *, coloured: bool
) -> list[RenderableType]:
    """Return the maps of the error (in each arithmetic) and of the drift, as many beside each other as fit.

    Args:
        found: what was measured.
        metric: of the gradients.
        chain: only this chain's.
        width: of the terminal; None where nothing limits it.
        coloured: whether colours may be used.
    """
    from rich.text import Text

    each = max(_LABEL + _CELL * len(found.axes.alphas), *(len(title) + 7 for title in _TITLES.values()))
    if width is not None and each > width:
        return [f"The map is {each} columns wide and the terminal {width}; see the picture."]
    blocks = [
        _block(found, f"{_TITLES[metric]}, {name}", metric, name, chain, coloured)
        for name in found.arithmetics
    ]
    blocks.append(_block(found, "drift", "drift", "", None, coloured))
    side_by_side = 1 if width is None else max(1, (width + _GAP) // (each + _GAP))
    lines: list[RenderableType] = []
    for first in range(0, len(blocks), side_by_side):
        if first:
            lines.append("")
        for parts in zip(*blocks[first : first + side_by_side], strict=True):
            line = Text()
            for part in parts:
                line.append(" " * _GAP if len(line) else "")
                line.append_text(part)
                line.append(" " * (each - len(part)))
            line.rstrip()
            lines.append(line)
    lines.append("* the recommended path; beta = 0 cannot be reversed (-)")
    return lines


def _block(
    found: ErrorMap, title: str, metric: str, arithmetic: str, chain: str | None, coloured: bool
) -> list[Text]:
    from rich.text import Text

    values = found.values(metric, arithmetic, chain)
    axes = found.axes
    marked = set()
    if found.recommended is not None:
        marked = {(p.alpha, p.beta) for p in found.recommended.route.points}
    lines = [Text(title, style="bold" if coloured else "")]
    for beta, row in reversed(list(zip(axes.betas, values, strict=True))):
        line = Text(f"{beta:>{_LABEL - 1}.4g} ")
        for alpha, value in zip(axes.alphas, row, strict=True):
            text = "-" if value is None else short_number(value)
            mark = "*" if (alpha, beta) in marked else " "
            line.append(f"{text:>{_CELL - 1}}{mark}", style=_style(metric, value) if coloured else "")
        lines.append(line)
    labels = "".join(f"{alpha:>{_CELL - 1}.3g} " for alpha in axes.alphas)
    lines.append(Text(f"{'beta':<{_LABEL}}{labels}"))
    lines.append(Text(f"{'':<{_LABEL}}{'alpha':>{_CELL - 1}}"))
    return lines


def _style(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric == "cosine":
        value = 1.0 - value
    low, high = (-2.0, 0.5) if metric == "drift" else (-7.0, 0.0)
    share = 0.0 if value <= 0 else (math.log10(value) - low) / (high - low)
    step = min(len(_SHADES) - 1, max(0, int(share * len(_SHADES))))
    return f"{'white' if step < _DARK else 'black'} on {_SHADES[step]}"
