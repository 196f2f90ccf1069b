"""What converted once must convert for ever: compare a new row with the one that is written down."""

from __future__ import annotations

from typing import Any


def worse(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """How a network does worse than before; None if it does not.

    Args:
        before: its row in the results file.
        now: its row of a run just made.
    """
    if now["status"] == "failed":
        return f"{now['key']} failed: {now['detail']}"
    if before["status"] == "left alone" and now["status"] == "not tried":
        return f"{now['key']} does not run any more: {now['detail']}"
    if before["status"] == now["status"] == "left alone" and before["reason"] != now["reason"]:
        return (
            f"{now['key']} was left alone for {before['reason']} and now for {now['reason']}: {now['detail']}"
        )
    if before["status"] != "converted":
        return None
    if now["status"] != "converted":
        return f"{now['key']} converted and now is {now['status']}: {now.get('reason', '')} {now['detail']}"
    if sum(now["segments"]) < sum(before["segments"]) or max(now["segments"]) < max(before["segments"]):
        return f"{now['key']} had chains of {before['segments']} segments and now has {now['segments']}"
    return None
