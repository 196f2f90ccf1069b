"""`revsurgeon memory`: its table, its documents, and what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from .conftest import Run

STORED = ("--strategy", "stored", "--device", "cpu")
QUICK = ("--strategy", "stored", "--strategy", "exact", "--device", "cpu")


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_table_a_sentence_and_a_picture(revsurgeon: Run) -> None:
    result = revsurgeon("memory", "demo", "--batch", "32", *STORED, "--fit", "20MiB", "--plot", "a.png")
    assert result.code == 0, result.err
    for words in ("stored", "largest batch", "x floor", "stored activations fit"):
        assert words in result.out
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_the_document_is_the_plan(revsurgeon: Run) -> None:
    result = revsurgeon("memory", "demo", *QUICK, "--json")
    found = json.loads(result.out)
    assert [row["strategy"] for row in found["rows"]] == ["stored", "exact"]
    for row in found["rows"]:
        assert sum(row["parts"].values()) == row["peak"]
    assert found["settings"]["optimizer"] == "adamw"


class Collecting(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("debug", [False, True])
def test_what_torch_logs_of_a_failed_simulation_is_for_debug_alone(revsurgeon: Run, debug: bool) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "use_cache": False}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    Path("config.json").write_text(json.dumps(config | sizes), encoding="utf-8")
    handler = Collecting()
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(handler)
    try:
        # The mask keeps its own length.
        refused = revsurgeon("memory", ".", "--input", "input_ids=1x64:int64", *["--debug"] * debug, *STORED)
    finally:
        log.removeHandler(handler)
    assert "broadcast" in refused.err
    assert bool(handler.records) is debug


def test_quiet_prints_one_number(revsurgeon: Run) -> None:
    result = revsurgeon("memory", "demo", *STORED, "--quiet")
    assert (result.code, result.err) == (0, "")
    assert int(result.out) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--fit", "2XB"), "not a size of memory"),
        (("--optimizer", "lion"), "Known: adamw, sgd, adam8bit"),
        (("--amp", "int4"), "Known: none, bf16, fp16"),
        (("--vary", "depth"), "cannot be varied"),
        (("--batch", "0"), "from 1 up"),
        (("--strategy", "magic"), "Known: stored"),
        (("--image-size", "1"), "does not take these inputs"),
        (("--frames", "8"), "no input with frames"),
        (("--fit", "1GiB", "--vary", "frames"), "no input with frames"),
        (("--input", "0=2x3x8x8"), "does not take these inputs"),
        (("--plot", "a.txt"), "no picture"),
        (("--device", "tpu"), "Known: cuda, cpu"),
        (("--lora-rank", "0"), "from 1 up"),
        (("--accumulate", "0"), "at least one pass"),
    ],
)
def test_what_makes_no_sense_is_a_clear_error(revsurgeon: Run, options: tuple[str, ...], words: str) -> None:
    result = revsurgeon("memory", "demo", *options)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err


def test_a_network_without_chains_has_the_code_for_it(revsurgeon: Run) -> None:
    assert revsurgeon("memory", "torchvision:alexnet").code == 4
