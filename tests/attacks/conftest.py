"""What attacks are made of: a converted demo, and libraries loaded before an attack is run in a copy."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import revsurgeon as rs


@pytest.fixture(scope="session", autouse=True)
def _libraries() -> Iterator[None]:
    """Import what an attack may reach beforehand: importing opens files and takes memory of its own."""
    import timm
    import torchvision
    import transformers
    import transformers.models.bert.modeling_bert
    import transformers.models.timm_wrapper.modeling_timm_wrapper  # noqa: F401, for the files that it opens

    assert timm.list_models()
    assert torchvision.models.list_models()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads do not survive a fork
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, converted once."""
    path = tmp_path_factory.mktemp("artifacts") / "demo-dr2"
    rs.convert("demo", output=path, arithmetic="exact", verify=False, start=(0.9, 0.1))
    assert rs.chains(rs.load(path))
    return path


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """A path that exists only after an attack was executed."""
    return tmp_path / "executed"


class Code:
    """An object whose pickle makes a directory when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


@pytest.fixture
def evil_pickle(proof: Path) -> bytes:
    return pickle.dumps({"weight": Code(proof)}, protocol=2)
