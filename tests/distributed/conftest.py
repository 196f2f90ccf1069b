"""The pair of processes that all tests here share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.processes import TwoProcesses


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoProcesses]:
    """Call it with a function: it runs in two processes of one group."""
    pair = TwoProcesses(tmp_path_factory.mktemp("processes"))
    yield pair
    pair.close()
