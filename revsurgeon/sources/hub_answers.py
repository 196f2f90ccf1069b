"""Refuses answers of a Hub whose headers would have its client write outside its cache.

huggingface_hub names the files of its cache after the ETag and the commit that the server states, and
of these two it checks the commit alone. The Hub's own are hexadecimal; those of a mirror that was broken into
need not be.
"""

from __future__ import annotations

import re
from typing import Any

from revsurgeon.errors import HubError

_NAMES = ("ETag", "X-Linked-ETag", "X-Repo-Commit", "X-Xet-Hash")
_PATH = re.compile(r"[/\\\0]|\.\.")


def check_answers() -> None:
    """Let the client's present connection check what it is answered, from now on."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _check not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _check]}


def _check(response: Any) -> None:
    for name in _NAMES:
        value = response.headers.get(name, "").removeprefix("W/")
        if _PATH.search(value):
            raise HubError(
                "the Hub's answer names a file outside the download cache.",
                where=f"{response.request.url}\n{name}: {value[:200]}",
                hint="Check HF_ENDPOINT if you set it. Do not trust that server.",
            )
