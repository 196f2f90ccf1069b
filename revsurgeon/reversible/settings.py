"""torch's global settings that choose kernels: a segment is rebuilt under those that it first ran under."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import backends

_BACKENDS: Any = backends  # torch's annotations lack most of their attributes
_FLAGS: tuple[tuple[Any, str], ...] = (
    (_BACKENDS.cuda.matmul, "fp32_precision"),
    (_BACKENDS.mkldnn.matmul, "fp32_precision"),
    (_BACKENDS.mkldnn.conv, "fp32_precision"),
    (_BACKENDS.cudnn.conv, "fp32_precision"),
    (_BACKENDS.cudnn.rnn, "fp32_precision"),
    (_BACKENDS.cudnn, "enabled"),
    (_BACKENDS.cudnn, "benchmark"),
    (_BACKENDS.cudnn, "deterministic"),
)
_ATTENTION: tuple[tuple[Callable[[], bool], Callable[[bool], None]], ...] = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)


@dataclass(frozen=True)
class Settings:
    """torch's global settings that choose kernels. Others than at the first run would give other bits."""

    precision: str | None
    flags: tuple[Any, ...]
    attention: tuple[bool, ...]
    deterministic: tuple[bool, bool]

    @classmethod
    def now(cls) -> Settings:
        """As they are at this moment."""
        return cls(
            _matmul_precision(),
            tuple(getattr(owner, name) for owner, name in _FLAGS),
            tuple(enabled() for enabled, _ in _ATTENTION),
            (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
        )

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Have these settings inside this context."""
        present = Settings.now()
        try:
            self._set()
            yield
        finally:
            present._set()

    def _set(self) -> None:
        if self.precision is not None:
            torch.set_float32_matmul_precision(self.precision)
        for (owner, name), value in zip(_FLAGS, self.flags, strict=True):
            if getattr(owner, name) != value:
                setattr(owner, name, value)
        for (_, enable), value in zip(_ATTENTION, self.attention, strict=True):
            enable(value)
        enabled, warn_only = self.deterministic
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _matmul_precision() -> str | None:
    """What `torch.set_float32_matmul_precision` was told; None where the newer flags are used instead."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
