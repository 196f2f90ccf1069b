"""The picture of a chain can be drawn again."""

from __future__ import annotations

from pathlib import Path

from benchmarks.chain_figure import PICTURE, draw


def test_the_picture_of_a_chain_is_drawn_and_the_runtimes_page_shows_it(tmp_path: Path) -> None:
    assert draw(tmp_path / "chain.png").read_bytes().startswith(b"\x89PNG")
    page = PICTURE.parents[2] / "revsurgeon" / "reversible" / "README.md"
    assert "(../../docs/images/chain.png)" in page.read_text(encoding="utf-8")
    assert PICTURE.exists()
