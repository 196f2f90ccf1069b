"""The tree that `revsurgeon inspect` shows, on anatomies made by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from revsurgeon.anatomy.report import Anatomy, Block, Chain, Reason, Segment, Skipped
from revsurgeon.cli.anatomy_tree import headline, listings, tree
from revsurgeon.cli.output import console


def block(path: str, width: int = 192) -> Block:
    segments = tuple(
        Segment(
            block=path,
            index=index,
            branch=(f"{path}.norm{index}", f"{path}.{name}"),
            skip="identity",
            parameters=width * width * 4,
            shape=(2, 197, width),
            code=f"def segment(self, x, alpha):\n    return self.{name}(x) + alpha * x\n",
        )
        for index, name in enumerate(("attn", "mlp"))
    )
    return Block(path=path, stream="x", output=0, segments=segments)


@pytest.fixture
def anatomy() -> Anatomy:
    blocks = tuple(block(f"encoder.layers.{index}") for index in range(12))
    odd = block("encoder.layers.12", width=384)
    skipped = tuple(
        Skipped(f"features.stage.{i}.norm", Reason.NO_RESIDUAL, "nothing is added to its input")
        for i in range(30)
    )
    skipped += (Skipped("stem", Reason.SHAPE_CHANGES, "[(2, 3, 224, 224)] -> [(2, 64, 56, 56)]"),)
    chain = Chain(name="encoder.layers", blocks=(*blocks, odd))
    return Anatomy((chain,), skipped, parameters=10_000_000, parameters_in_chains=5_000_000)


def rendered(renderable: object, width: int = 100, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    target = console(stream)
    target.width = width
    target.print(renderable)
    return raw.getvalue().decode(encoding)


def test_the_headline_counts_and_gives_the_share_of_the_parameters(anatomy):
    assert headline(anatomy) == "26 segments in 1 chain, 50.0% of 10.0 M parameters"


def test_a_network_without_chains_is_said_to_have_none(anatomy):
    assert headline(replace(anatomy, chains=())) == "nothing can be rewired; 10.0 M parameters"


def test_a_segment_shows_its_branch_skip_parameters_and_shape(anatomy):
    text = rendered(tree("net", anatomy, everything=False))
    assert "0: norm0, attn  identity skip, 147 k parameters, 2x197x192" in text


def test_a_run_of_alike_blocks_is_one_line_and_a_different_block_is_not_in_it(anatomy):
    text = rendered(tree("net", anatomy, everything=False))
    assert "encoder.layers.1 to encoder.layers.11  11 blocks like the one above" in text
    assert "encoder.layers.5" not in text
    assert "encoder.layers.12\n" in text


def test_all_lists_every_block_and_everything_left_alone(anatomy):
    text = rendered(tree("net", anatomy, everything=True))
    assert all(f"encoder.layers.{index}\n" in text for index in range(13))
    assert all(f"features.stage.{index}.norm " in text for index in range(30))


def test_what_is_left_alone_for_the_same_reason_is_grouped(anatomy):
    text = rendered(tree("net", anatomy, everything=False))
    assert "left alone  31 modules" in text
    assert "and 27 more" in text
    assert text.count("no-residual") == 1
    assert "[(2, 3, 224, 224)] -> [(2, 64, 56, 56)]" in text  # brackets are text, not markup


@pytest.mark.parametrize("width", [40, 57, 80, 120, 200])
@pytest.mark.parametrize("everything", [False, True])
def test_no_line_is_wider_than_the_terminal(anatomy, width, everything):
    text = rendered(tree("net", anatomy, everything=everything), width)
    assert max(map(len, text.splitlines())) <= width


def test_a_terminal_without_utf_8_gets_plain_guides(anatomy):
    text = rendered(tree("net", anatomy, everything=False), encoding="ascii")
    assert "+-- chain encoder.layers" in text


def test_segments_with_the_same_function_share_one_listing(anatomy):
    texts = [rendered(item) for item in listings(anatomy, everything=False, highlighted=True)]
    assert len(texts) == 4  # two functions, each with the line that says who runs it
    assert "encoder.layers.0 segment 0" in texts[0]
    assert "return self.attn(x) + alpha * x" in texts[1]


def test_all_prints_the_function_of_every_segment_by_itself(anatomy):
    assert len(list(listings(anatomy, everything=True, highlighted=False))) == 2 * 26
