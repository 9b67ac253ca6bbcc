# SPDX-License-Identifier: Apache-2.0
"""How inference runs: in which precision, and in chunks of which size.

Frame-wise work (encoder, frame attention, heads, and the linear layers of global blocks) gives the
same values in chunks of any size, up to rounding, so a chunk is as large as is useful and the free
memory allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How a model runs; none of it changes what is computed beyond rounding."""

    precision: Precision = "auto"
    """Arithmetic of encoder and transformer. auto: bf16 on GPUs of compute capability 8 or newer
    and on CPUs with bf16 instructions, fp16 on older GPUs, fp32 elsewhere. Camera and depth heads
    always run in fp32."""
    frames_per_chunk: int | None = None
    """Frames that encoder and transformer blocks process together. None: as many as are useful and
    fit in memory."""
    head_frames_per_chunk: int | None = None
    """Frames that the dense heads process together. None: as many as are useful and fit in
    memory."""
    memory_gib: float | None = None
    """Memory that the run may use beyond the weights, in GiB. None: what is free when the run
    begins."""
    tap_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """How tokens for the dense heads are kept. auto: fp32, or bf16 in a 16-bit run where fp32 would
    take more than a quarter of the memory."""

    def __post_init__(self) -> None:
        for name in ("frames_per_chunk", "head_frames_per_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.memory_gib is not None and self.memory_gib <= 0:
            raise ValueError(f"`memory_gib` must be positive, got {self.memory_gib}.")


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype of a run, ``None`` for plain float32."""
    if precision != "auto":
        return _AUTOCAST_DTYPES[precision]
    if device.type == "cuda":
        is_modern = torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if is_modern else torch.float16
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context in which linear layers, convolutions and attention run in ``dtype``.

    The cast copies of the weights live until the context ends, so callers enter it once per layer.
    """
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context that turns off a surrounding autocast."""
    if device.type not in ("cuda", "cpu"):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of consecutive chunks of at most ``size``."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
