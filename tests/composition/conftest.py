"""Of every test that is there for both arithmetics, the default run takes one; `-m slow` runs the others."""

from __future__ import annotations

import zlib

import pytest

ARITHMETICS = ("float", "exact")


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which one it is follows from the test's name, so that it is the same one at every run."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.parent.name != "composition" or parameters.get("arithmetic") not in ARITHMETICS:
            continue
        name = item.nodeid.replace("float", "").replace("exact", "")
        if parameters["arithmetic"] != ARITHMETICS[zlib.crc32(name.encode()) % 2]:
            item.add_marker(pytest.mark.slow)
