"""Write the result of a verification into the artifact: header, manifest.yaml and model card, all at once.

The bytes of the weights are copied as they are. A killed run leaves the artifact as it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from revsurgeon.artifact import Manifest, read_manifest
from revsurgeon.artifact.card import with_checks
from revsurgeon.artifact.header import encode_header, read_header
from revsurgeon.artifact.names import CARD, CONFIG, INDEX, MANIFEST
from revsurgeon.artifact.staging import staged
from revsurgeon.checks.report import CheckResult, Report
from revsurgeon.checks.seal import RECORD, seal_of_structure, seal_of_weights
from revsurgeon.errors import ArtifactError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_KEY = "revsurgeon"
_MORE = "Verify without --stamp, or copy the artifact first."


def stamp(path: Path, report: Report) -> None:
    """Put a report's verdicts and figures into an artifact, in place of what an earlier one left there.

    Args:
        path: the artifact's directory or its one weight file. A file that lies in an artifact's directory
            stands for the directory.
        report: of this artifact.

    Raises:
        ArtifactError: it cannot be read or written, or its directory holds other things.
    """
    if path.is_file() and (path.parent / MANIFEST).is_file():
        path = path.parent
    manifest = read_manifest(path)
    manifest = manifest.model_copy(
        update={"checks": {**manifest.checks, RECORD: record_of(report, manifest)}}
    )
    if path.is_dir():
        _stamp_directory(path, manifest)
    else:
        _stamp_file(path, manifest)


def record_of(report: Report, manifest: Manifest) -> dict[str, Any]:
    """What a manifest says of a verification; figures have two digits, which other machines repeat."""
    results = {check.name: _of_check(check) for check in report.checks}
    return {
        "passed": report.passed,
        "extent": report.extent,
        "checks": results,
        "of": seal_of_structure(manifest),
        "weights": seal_of_weights(manifest),
        **report.versions,
        "device": report.device,
        "dtype": report.dtype,
    }


def _of_check(check: CheckResult) -> dict[str, Any]:
    figures = {"value": check.value, "threshold": check.threshold}
    told = {name: float(f"{value:.2g}") for name, value in figures.items() if value is not None}
    return {"verdict": check.verdict, **told, **({"reason": check.reason} if check.reason else {})}


def _stamp_directory(directory: Path, manifest: Manifest) -> None:
    _refuse_links(directory)
    with staged(directory, force=True) as stage:
        for name in manifest.files:
            _copy_with_header(directory / name, stage / name, manifest)
        for name in (INDEX, CONFIG):
            if (directory / name).is_file():
                shutil.copyfile(directory / name, stage / name)
        (stage / MANIFEST).write_bytes(manifest.to_yaml().encode())
        card = directory / CARD
        if card.is_file():
            text = card.read_text(encoding="utf-8", errors="replace")
            (stage / CARD).write_bytes(with_checks(text, manifest).encode())


def _refuse_links(directory: Path) -> None:
    """A directory of links (the Hub's download cache) is not the artifact's own place."""
    links = [path.name for path in sorted(directory.iterdir()) if path.is_symlink()]
    if links:
        raise ArtifactError(
            "The artifact's files are links into another place, as in the Hub's cache.",
            where=f"{directory}: {', '.join(links[:5])}",
            hint=_MORE,
        )


def _copy_with_header(source: Path, target: Path, manifest: Manifest) -> None:
    """Write the same tensors behind another header."""
    header = read_header(source)
    with source.open("rb") as old, target.open("wb") as new:
        length = int.from_bytes(old.read(8), "little")
        old.seek(8 + length)
        new.write(encode_header(header.tensors, {**header.metadata, _KEY: manifest.to_json()}))
        shutil.copyfileobj(old, new, 1 << 22)


def _stamp_file(file: Path, manifest: Manifest) -> None:
    """Replace one file by a copy with another header, in one rename."""
    file = file.resolve()
    draft = file.with_name(f".{file.name}.revsurgeon-stamp")
    try:
        with _only_writer(draft):
            _copy_with_header(file, draft, manifest)
            with draft.open("rb") as written:
                os.fsync(written.fileno())
            shutil.copymode(file, draft)
            draft.replace(file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ArtifactError(
            f"The artifact cannot be written: {error.strerror}.", where=str(file), hint=_MORE
        ) from error


@contextlib.contextmanager
def _only_writer(draft: Path) -> Iterator[None]:
    """Hold a lock on the draft, so that two runs do not write it at once; a killed run's is written over."""
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(
                    "Another run is writing to the same artifact.", where=str(draft), hint="Wait for it."
                ) from None
        yield
    finally:
        os.close(descriptor)
