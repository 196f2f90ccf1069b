"""Tensors of a sharded checkpoint that have to be copied lie in a file, not in the process's memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from revsurgeon.sources.scratch import Scratch
from revsurgeon.sources.tensors import is_aligned, read_safetensors

TENSORS = {
    "odd": torch.arange(7, dtype=torch.int8),
    "half": torch.linspace(-1, 1, 4099).to(torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 3),
    "weight": torch.linspace(0, 1, 5003 * 3).view(5003, 3),
}


@pytest.fixture
def odd_file(tmp_path: Path) -> Path:
    """Weights of which hardly any begins where torch's own would."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def _in_a_file(tensor: torch.Tensor) -> bool:
    """Whether the tensor's first byte lies in a mapping of a file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split()
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= tensor.data_ptr() < last:
            return inode != "0"
    raise LookupError(tensor.data_ptr())


def test_all_tensors_are_pages_of_files_and_aligned(odd_file: Path) -> None:
    with_memory = read_safetensors(odd_file)
    assert not all(_in_a_file(tensor) for tensor in with_memory.values() if tensor.numel())
    found = read_safetensors(odd_file, on_disk=True)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    assert all(is_aligned(tensor) and _in_a_file(tensor) for tensor in found.values() if tensor.numel())


def test_writing_to_them_leaves_the_checkpoint_alone(odd_file: Path) -> None:
    before = odd_file.read_bytes()
    for tensor in read_safetensors(odd_file, on_disk=True).values():
        tensor.zero_()
    assert odd_file.read_bytes() == before


def test_where_the_disk_has_no_room_they_are_copied_in_memory(
    odd_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    found = read_safetensors(odd_file, on_disk=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert all(map(is_aligned, found.values()))


def test_the_file_has_no_name_and_a_copy_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scratch = Scratch(1000)
    copies = [scratch.copy_of(torch.full((5,), float(n)), 64) for n in range(3)]
    assert list(tmp_path.iterdir()) == []
    del scratch
    assert [float(copy.sum()) for copy in copies] == [0.0, 5.0, 10.0]
