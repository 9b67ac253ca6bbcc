# SPDX-License-Identifier: Apache-2.0
"""Fast products on a CPU of float32 matrices that hold bfloat16 numbers.

torch's products of bfloat16 matrices round their result to bfloat16, which is too coarse for the
scores of a softmax. Its float32 products can be allowed to round what they multiply instead, and to
keep what they sum: of numbers that come from bfloat16 nothing is lost. They then run in oneDNN,
which uses the allowance where the CPU has tiles for bfloat16 (AMX). With AVX-512 alone it rounds
nothing and is still about twice as fast, on an AMD EPYC, as the library that torch calls otherwise
(`ONEDNN_VERBOSE=1` names the kernel, ``brg_matmul:avx512_core`` there).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .native_build import cpu_features


@contextmanager
def fast_products(like: Tensor) -> Iterator[None]:
    """Multiply float32 matrices as bfloat16 inside, if `like` is bfloat16 on a CPU that can.

    The switch is torch's and holds for the whole process: float32 products of other threads on the
    CPU are rounded alike as long as any thread is inside. It is put back when the last one leaves.

    Args:
        like: The tensor whose numbers are multiplied.
    """
    if like.device.type != "cpu" or like.dtype != torch.bfloat16 or not _can_multiply():
        yield
        return
    _SWITCH.enter()
    try:
        yield
    finally:
        _SWITCH.leave()


@dataclass
class _Switch:
    """torch's switch, shared by all threads inside."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    num_inside: int = 0
    before: str = ""

    def enter(self) -> None:
        with self.lock:
            if self.num_inside == 0:
                self.before = _precision()
                _set_precision(_FAST)
            self.num_inside += 1

    def leave(self) -> None:
        with self.lock:
            self.num_inside -= 1
            if self.num_inside == 0:
                _set_precision(self.before)


_SWITCH = _Switch()


@cache
def _can_multiply() -> bool:
    """Return whether this CPU multiplies bfloat16; emulated, it is twenty times slower."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_features())


# torch 2.9 gave CPU products a switch of their own; before, there was one for all devices.
_OWN_SWITCH: Any = getattr(torch.backends.mkldnn, "matmul", None)
_HAS_OWN_SWITCH = hasattr(_OWN_SWITCH, "fp32_precision")
_FAST = "bf16" if _HAS_OWN_SWITCH else "medium"


def _precision() -> str:
    return _OWN_SWITCH.fp32_precision if _HAS_OWN_SWITCH else torch.get_float32_matmul_precision()


def _set_precision(precision: str) -> None:
    if _HAS_OWN_SWITCH:
        _OWN_SWITCH.fp32_precision = precision
    else:
        torch.set_float32_matmul_precision(precision)
