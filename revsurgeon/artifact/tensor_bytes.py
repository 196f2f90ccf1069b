"""A torch tensor as the safetensors format sees it: the name of its dtype, its shape and its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from revsurgeon.errors import ArtifactError

if TYPE_CHECKING:
    import torch

# torch's names of the dtypes that the format has; float4 is left out, its shapes count differently.
_CODES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}


def tensor_kind(name: str, tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """The dtype and the shape to store a tensor under.

    Raises:
        ArtifactError: the format cannot hold it, or not under this name.
    """
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    problem = None
    if tensor.is_meta:
        problem = "has no data (it is on the meta device)"
    elif tensor.layout is not torch.strided:
        problem = "is sparse"
    elif dtype not in _CODES:
        problem = f"has the dtype {dtype}, which safetensors does not have"
    elif not name.isprintable() or name == "__metadata__":
        problem = "has a name that cannot be stored"
    if problem:
        raise ArtifactError(f"The tensor {name!r} {problem}.", hint="Convert or remove it before writing.")
    return _CODES[dtype], tuple(tensor.shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes row by row, without a copy where it lies that way in memory already."""
    import torch

    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")  # type: ignore[arg-type]
