# SPDX-License-Identifier: Apache-2.0
"""When the kernels run, and what is said when they cannot."""

from __future__ import annotations

import sys

import pytest
import torch

from ns_sparseattn.attention import BlockMap, block_sparse_attention, why_not
from ns_sparseattn.attention.backends import triton


def _map(block_q: int = 128, block_k: int = 64) -> BlockMap:
    return BlockMap.from_mask(torch.ones(1, 1, 1, 1, dtype=torch.bool), block_q, block_k)


def _why_not(
    dtype: torch.dtype = torch.float32,
    size: int = 64,
    block_map: BlockMap | None = None,
    requires_grad: bool = False,
) -> str | None:
    q = torch.zeros(1, 1, 16, size, dtype=dtype, requires_grad=requires_grad)
    return why_not("triton", q, q, q, block_map or _map())


@pytest.mark.usefixtures("interpreter_once")
def test_each_limit_has_its_sentence() -> None:
    assert _why_not() is None
    assert _why_not(torch.float16, 128) is None
    assert "float16, bfloat16 and float32" in str(_why_not(torch.float64))
    assert "32, 64 or 128, this is 80" in str(_why_not(size=80))
    assert "Query blocks" in str(_why_not(block_map=_map(block_q=48)))
    assert "Key blocks" in str(_why_not(block_map=_map(block_k=256)))
    assert "backward" in str(_why_not(requires_grad=True))
    with torch.no_grad():
        assert _why_not(requires_grad=True) is None


@pytest.mark.usefixtures("has_triton")
def test_a_cpu_is_named() -> None:
    assert "CUDA devices only, not on cpu" in str(_why_not())
    q = torch.zeros(1, 1, 16, 64)
    with pytest.raises(ValueError, match="The triton backend cannot run here: .*CUDA"):
        block_sparse_attention(q, q, q, _map(), backend="triton")


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.startswith("ns_sparseattn.kernels"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    triton.what_is_missing.cache_clear()
    try:
        assert "pip install triton" in str(triton.what_is_missing())
        assert "pip install triton" in str(_why_not())
    finally:
        triton.what_is_missing.cache_clear()


@pytest.mark.usefixtures("has_triton")
def test_an_old_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ns_sparseattn.kernels import forward

    monkeypatch.setattr(forward, "TRITON_VERSION", (3, 1))
    triton.what_is_missing.cache_clear()
    try:
        assert "triton 3.6 or later, this is 3.1" in str(_why_not())
    finally:
        triton.what_is_missing.cache_clear()
