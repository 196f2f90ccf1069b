"""What a check is: a function that measures a subject, and what it needs to do so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from revsurgeon.checks.report import Measurement

if TYPE_CHECKING:
    from revsurgeon.checks.subject import Subject

Found = Iterator[Measurement | str]
"""What a check yields: measurements, and as text what it had to leave out and why."""


class Skipped(Exception):  # noqa: N818  # no error: the check does not apply
    """Raised by a check that does not apply; the message says why."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        run: measures.
        needs: "files" for a check of what is on the disk, "network" for one that runs the network.
        quick: whether `convert` runs it by itself, with `Subject.quick` set.
        by_block: whether it also holds block by block (`--stream`).
    """

    run: Callable[[Subject], Found]
    needs: Literal["files", "network"] = "network"
    quick: bool = False
    by_block: bool = False
