# SPDX-License-Identifier: Apache-2.0
"""Gathered bfloat16 is multiplied as such, exactly enough, and torch's switch is put back."""

from __future__ import annotations

import threading

import pytest
import torch

from ns_sparseattn.attention import BlockMap, block_sparse_attention
from ns_sparseattn.attention.backends import cpu_products
from ns_sparseattn.attention.backends.cpu_products import fast_products

BFLOAT16, FLOAT32 = (torch.zeros(1, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))


@pytest.fixture(autouse=True)
def cpu_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "_can_multiply", lambda: True)


def test_only_products_of_bfloat16_are_rounded() -> None:
    before = cpu_products._precision()
    for like in (FLOAT32, FLOAT32.half(), FLOAT32.double(), BFLOAT16.to("meta")):
        with fast_products(like):
            assert cpu_products._precision() == before
    with fast_products(BFLOAT16):
        assert cpu_products._precision() == cpu_products._FAST
    assert cpu_products._precision() == before


def test_other_cpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "_can_multiply", lambda: False)
    before = cpu_products._precision()
    with fast_products(BFLOAT16):
        assert cpu_products._precision() == before


def test_the_switch_is_put_back_after_an_error_and_by_the_last_thread_only() -> None:
    before = cpu_products._precision()
    with pytest.raises(RuntimeError, match="stop"), fast_products(BFLOAT16):
        raise RuntimeError("stop")
    assert cpu_products._precision() == before
    may_leave, is_inside = threading.Event(), threading.Event()

    def stay() -> None:
        with fast_products(BFLOAT16):
            is_inside.set()
            may_leave.wait()

    thread = threading.Thread(target=stay)
    with fast_products(BFLOAT16):
        thread.start()
        is_inside.wait()
    assert cpu_products._precision() == cpu_products._FAST
    may_leave.set()
    thread.join()
    assert cpu_products._precision() == before


@pytest.mark.parametrize("head_size", [32, 64])
@pytest.mark.parametrize("spread", [1.0, 4.0])
@pytest.mark.parametrize("coarse", [False, True])
def test_the_error_is_what_is_stated(head_size: int, spread: float, coarse: bool) -> None:
    # Wide spreads make large scores, which bfloat16 would round by much.
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 600, head_size, generator=generator) for _ in range(3))
    q, k, v = ((x * scale).bfloat16() for x, scale in ((q, spread), (k, spread), (v, 1.0)))
    mask = torch.rand(1, 2, 5, 10, generator=generator) < 0.5
    block_map = BlockMap.from_mask(mask)
    out = block_sparse_attention(q, k, v, block_map, backend="gather", coarse=coarse)
    want = block_sparse_attention(
        q.double(), k.double(), v.double(), block_map, backend="reference", coarse=coarse
    )
    assert float((out - want).norm() / want.norm()) <= 2e-3
