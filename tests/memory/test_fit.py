"""The search for the largest size that fits, on functions whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from revsurgeon.memory.fit import find_largest

CURVES: dict[str, Callable[[int], int]] = {
    "line": lambda n: 1000 + 37 * n,
    "square": lambda n: 5000 + 3 * n * n,
    "flat, then a line": lambda n: max(4000, 11 * n),
    "steps": lambda n: 512 * (n // 7 + 1),
    "flat": lambda n: 4000,
}


@pytest.mark.parametrize("limit", [3999, 4000, 5003, 12_345, 1_000_000])
@pytest.mark.parametrize("step", [1, 2, 16])
@pytest.mark.parametrize("start", [1, 16, 224])
@pytest.mark.parametrize("name", CURVES)
def test_the_answer_fits_and_the_next_one_does_not(name: str, start: int, step: int, limit: int) -> None:
    seen: dict[int, int] = {}

    def peak(value: int) -> int:
        assert value >= 1
        assert (value - start) % step == 0, "only what the network takes is asked for"
        seen[value] = CURVES[name](value)
        return seen[value]

    found = find_largest(peak, limit, start, step)
    if found.value is None:
        assert seen[found.smallest] > limit
        assert found.smallest - step < 1
        return
    assert seen[found.value] <= limit
    if found.next is None:
        assert found.value >= start + 2**20 * step
    else:
        assert found.next == found.value + step
        assert seen[found.next] > limit


def test_a_straight_line_needs_few_evaluations() -> None:
    calls = []

    def peak(value: int) -> int:
        calls.append(value)
        return 10**9 + 123_456_789 * value

    assert find_largest(peak, 24 * 2**30, 1, 1).value == (24 * 2**30 - 10**9) // 123_456_789
    assert len(calls) <= 4
