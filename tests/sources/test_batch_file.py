"""Real inputs from a file: what is taken, and what is refused with words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from revsurgeon.errors import UsageError
from revsurgeon.sources.batch_file import read_batch
from revsurgeon.sources.inputs import Input, InputSpec

IMAGES = InputSpec({"0": Input((1, 3, 4, 4))}, ("x",))
TEXT = InputSpec(
    {"ids": Input((1, 5), "int64", "tokens", high=9), "mask": Input((1, 5), "int64", "ones")}, ("ids", "mask")
)


class Payload:
    """Something that torch.save can only pickle."""

    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_an_array_and_a_tensor_are_read_as_the_network_takes_them(tmp_path: Path) -> None:
    batch = torch.randn(7, 3, 4, 4, dtype=torch.float64)
    numpy.save(tmp_path / "a.npy", batch.numpy())
    torch.save(batch, tmp_path / "a.pt")
    torch.save({"0": batch}, tmp_path / "b.pt")
    for name in ("a.npy", "a.pt", "b.pt"):
        (read,) = read_batch(tmp_path / name, IMAGES)
        assert torch.equal(read, batch.float())


def test_inputs_by_name_are_read_in_the_order_of_the_network(tmp_path: Path) -> None:
    ids = torch.arange(5).view(1, 5)
    torch.save({"mask": torch.ones(1, 5, dtype=torch.int32), "ids": ids}, tmp_path / "a.pt")
    read = read_batch(tmp_path / "a.pt", TEXT)
    assert isinstance(read, dict)
    assert list(read) == ["ids", "mask"]
    assert torch.equal(read["ids"], ids)
    assert read["mask"].dtype == torch.int64


CASES: dict[str, tuple[Any, InputSpec, str]] = {
    "another size": (torch.zeros(2, 3, 5, 4), IMAGES, "is 2x3x5x4; the network takes Nx3x4x4"),
    "no batch": (torch.zeros(3, 4, 4), IMAGES, "is 3x4x4"),
    "an empty batch": (torch.zeros(0, 3, 4, 4), IMAGES, "batch of N >= 1"),
    "whole numbers": (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), IMAGES, "takes float32"),
    "complex numbers": (torch.zeros(2, 3, 4, 4, dtype=torch.complex64), IMAGES, "takes float32"),
    "infinity": (torch.full((2, 3, 4, 4), float("inf")), IMAGES, "NaN or infinity"),
    "two tensors for one input": ((torch.zeros(1), torch.zeros(1)), IMAGES, "not hold the network's inputs"),
    "a missing name": ({"ids": torch.zeros(1, 5)}, TEXT, "not hold the network's inputs"),
    "a list of numbers": ({"0": [1.0, 2.0]}, IMAGES, "is a list, not a tensor"),
    "indices that there are not": (
        (torch.full((1, 5), 9), torch.ones(1, 5, dtype=torch.int64)),
        TEXT,
        "indices from 9 to 9",
    ),
    "different batches": (
        (torch.zeros(1, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)),
        TEXT,
        "different batch sizes",
    ),
    "an object": (Payload(), IMAGES, "more than tensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_inputs_that_the_network_does_not_take_are_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, spec, message = CASES[case]
    torch.save(content, tmp_path / "a.pt")
    capsys.readouterr()
    with pytest.raises(UsageError, match=message) as caught:
        read_batch(tmp_path / "a.pt", spec)
    assert str(tmp_path / "a.pt") in (caught.value.where or "")
    assert capsys.readouterr().out == ""  # the object's code did not run


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"no array", "not an array of numbers"),
        ("a.pt", b"no archive", "cannot be read"),
        ("a.jpg", b"", "neither an .npy nor a .pt file"),
        ("missing/a.npy", None, "is not there"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_batch(tmp_path / name, IMAGES)


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numpy.save(tmp_path / "a.npy", numpy.array([Payload()], dtype=object), allow_pickle=True)
    capsys.readouterr()
    with pytest.raises(UsageError, match="not an array of numbers"):
        read_batch(tmp_path / "a.npy", IMAGES)
    assert capsys.readouterr().out == ""
