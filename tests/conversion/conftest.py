"""What tests of conversion share: the command line in this process, a Hub on loopback, tiny checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Run, revsurgeon
from tests.sources.conftest import hub, offline, videomae

__all__ = ["Run", "hub", "offline", "revsurgeon", "videomae"]


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks here are small: threads that wait for each other would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Hub's client try again at once."""
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny text network whose output layer is its word embedding."""
    from transformers import BertConfig, BertForMaskedLM

    settings: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = BertForMaskedLM(BertConfig(vocab_size=99, intermediate_size=64, **settings))
    directory = tmp_path_factory.mktemp("masked") / "masked-lm"
    model.save_pretrained(directory)
    return directory
