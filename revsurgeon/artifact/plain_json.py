"""JSON from files that nobody vouches for: bounded, no duplicate keys, no NaN."""

from __future__ import annotations

import json
from typing import Any

from revsurgeon.errors import ArtifactError

MAX_BYTES = 64 << 20
"""The most JSON that is read or written at once: 100,000 tensors take about 30 MB."""

MAX_CONTAINERS = 1_000_000
"""The most lists and objects in it. An empty list is 2 bytes in a file and 56 in memory."""


def parse_json(raw: bytes | str, where: str) -> Any:
    """Plain data from JSON text.

    Args:
        raw: the text, at most `MAX_BYTES` long; bytes must be UTF-8.
        where: the place to name in an error.

    Raises:
        ArtifactError: it is not JSON, or not JSON that this project would write.
    """
    if len(raw) > MAX_BYTES:
        raise ArtifactError(f"The JSON is larger than {MAX_BYTES >> 20} MiB.", where=where)
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        if text.count("[") + text.count("{") > MAX_CONTAINERS:
            raise ArtifactError(f"The JSON holds more than {MAX_CONTAINERS:,} values.", where=where)
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ArtifactError("The JSON is not UTF-8 text.", where=where) from None
    except RecursionError:
        raise ArtifactError("The JSON is nested too deeply.", where=where) from None
    except ValueError as error:
        raise ArtifactError(f"The JSON cannot be read: {error}.", where=where) from None


def render_json(data: Any) -> str:
    """Plain data as compact ASCII JSON, in the order it is given (the order of inputs has a meaning).

    Raises:
        ValueError: it holds NaN or an infinity, which JSON does not have.
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")
