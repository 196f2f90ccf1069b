"""Pictures as files: which kinds there are, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from revsurgeon.errors import UsageError
from revsurgeon.files import check_target, written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Neither date nor version in the file: the same figure gives the same bytes.
PICTURES: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}


def check_picture(path: Path) -> None:
    """Refuse a file that is not a picture, or cannot be written, before anything is measured.

    Raises:
        UsageError: it does not end in .png, .svg or .pdf, or there is no such directory.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"{path.name!r} is no picture.", hint=f"End it in {', '.join(PICTURES)}.")
    check_target(path)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as the kind of picture that its path ends in."""
    with written_whole(path) as beside:
        figure.savefig(beside, dpi=140, metadata=PICTURES[path.suffix.lower()])
    return path
