"""Which files a picture can be. Imports nothing heavy, so that a wrong name is refused at once."""

from __future__ import annotations

from pathlib import Path

from revsurgeon.errors import UsageError

PICTURES = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """Refuse a file that is not a picture, before anything is measured.

    Raises:
        UsageError: it does not end in .png, .svg or .pdf.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"{path.name!r} is no picture.", hint=f"End it in {', '.join(PICTURES)}.")
