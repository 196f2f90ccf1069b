"""One honest sentence: what to take, and where plain checkpointing is enough."""

from __future__ import annotations

from collections.abc import Sequence

from revsurgeon.memory.plan import Fit, Row
from revsurgeon.memory.quantity import size

WORTH = 0.9
"""A reversible way is worth its rewiring where it needs less than this share of what checkpointing needs."""


def advice(
    rows: Sequence[Row], fits: Sequence[Fit], limit: int | None, vary: str, blocks: Sequence[str]
) -> str:
    """The recommendation.

    Args:
        rows: of the size that was asked for.
        fits: largest sizes, with a limit.
        limit: bytes, or None.
        vary: what was enlarged.
        blocks: paths of the blocks that are checkpointed.
    """
    full = {row.strategy: row for row in rows if row.lora_rank is None}
    checkpoint = full.get("checkpoint")
    reversible = [row for name, row in full.items() if name not in ("stored", "checkpoint")]
    if limit is not None:
        return _for_limit(full, fits, limit, vary, blocks)
    if checkpoint is None or not reversible:
        return ""
    least = min(reversible, key=lambda row: row.peak)
    if least.peak >= WORTH * checkpoint.peak:
        return (
            f"Plain checkpointing is enough here: it peaks at {size(checkpoint.peak)}, and the least of the "
            f"reversible ways at {size(least.peak)}, because {_most(least)} are most of that. "
            f"{torch_call(blocks)}"
        )
    stored = f" and stored activations need {size(full['stored'].peak)}" if "stored" in full else ""
    return (
        f"{least.title} needs {size(least.peak)} where checkpointing needs {size(checkpoint.peak)}{stored}."
    )


def _for_limit(
    rows: dict[str, Row], fits: Sequence[Fit], limit: int, vary: str, blocks: Sequence[str]
) -> str:
    largest = {f.strategy: f for f in fits if f.lora_rank is None and f.largest is not None}
    what = {"frames": "number of frames"}.get(vary, vary.replace("-", " "))
    if not largest:
        return f"Nothing fits into {size(limit)}, not even the smallest {what}."
    fitting = [row for row in rows.values() if row.peak <= limit]
    best = max(largest.values(), key=lambda f: (f.largest or 0, -f.time_ratio))
    far = f"the largest {what} is {best.largest}, by {best.title} (x{best.time_ratio:.2f} the time)"
    if not fitting:
        return f"The size that was asked for does not fit in any way; {far}."
    quickest = min(fitting, key=lambda row: (row.time_ratio, row.peak))
    if quickest.strategy == "stored":
        return f"At the size that was asked for stored activations fit, nothing else is needed; {far}."
    if quickest.strategy == "checkpoint":
        plain = largest.get("checkpoint")
        if plain is not None and plain.largest and (best.largest or 0) * WORTH <= plain.largest:
            far = f"no way gets much beyond its largest {what}, {plain.largest}"
        return f"Plain checkpointing is enough at the size that was asked for; {far}. {torch_call(blocks)}"
    return (
        f"{quickest.title} is the quickest that fits at the size that was asked for "
        f"(x{quickest.time_ratio:.2f} the time of stored activations); {far}."
    )


def torch_call(blocks: Sequence[str]) -> str:
    """How plain checkpointing is written."""
    parents = list(dict.fromkeys(path.rpartition(".")[0] for path in blocks))
    lists = " and ".join(f"model.{parent}" for parent in parents[:4]) + (" and so on" * (len(parents) > 4))
    return (
        f"For every block of {lists}: block.forward = functools.partial(torch.utils.checkpoint.checkpoint, "
        "block.forward, use_reentrant=False)"
    )


def _most(row: Row) -> str:
    states = {k: v for k, v in row.parts.items() if k in ("parameters", "gradients", "optimizer")}
    if sum(states.values()) > row.peak / 2:
        return "parameters, gradients and optimizer states"
    return "what lies outside its chains, and what a segment needs while it is rebuilt,"
