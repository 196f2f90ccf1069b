"""Room for copies of tensors that is on the disk, so that a large checkpoint needs no memory of its own.

A tensor that a file holds at an odd offset has to be copied. In the process's own memory such copies would be
as large as the checkpoint. Here they are pages of a file without a name (in TMPDIR), which the system writes
to the disk when it needs the memory, as it lets go of the pages of the checkpoint itself.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Scratch:
    """A file of a given size, which vanishes with the last tensor in it.

    Args:
        size: bytes.

    Raises:
        OSError: the disk has no such room, or the system cannot promise it.
    """

    def __init__(self, size: int) -> None:
        if not hasattr(os, "posix_fallocate"):
            raise OSError("this system does not set room on the disk aside")
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full later would end the process
            self._pages = mmap.mmap(file.fileno(), size)
        self._filled = 0

    def copy_of(self, tensor: torch.Tensor, alignment: int) -> torch.Tensor:
        """Return a copy that lies in the file.

        Args:
            tensor: on the CPU.
            alignment: bytes of which its address is a multiple; those of a page at most.
        """
        import torch

        if not tensor.numel():
            return tensor.clone()
        start = -(-self._filled // alignment) * alignment
        self._filled = start + tensor.nbytes
        flat = torch.frombuffer(self._pages, dtype=tensor.dtype, count=tensor.numel(), offset=start)
        return flat.view(tensor.shape).copy_(tensor)
