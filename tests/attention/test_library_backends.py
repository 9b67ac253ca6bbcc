# SPDX-License-Identifier: Apache-2.0
"""Backends around other people's kernels: what they hand over, and what they add to the result.

The kernels themselves need a GPU. FlexAttention also runs uncompiled on a CPU; FlashAttention-4 is
replaced by a few lines that compute what its documentation says.
"""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import BlockMap, why_not
from ns_sparseattn.attention.backends import fa4, flex, reference
from ns_sparseattn.attention.backends.inputs import AttentionInputs
from ns_sparseattn.attention.backends.lists import BlockLists
from ns_sparseattn.attention.backends.merge import merge
from ns_sparseattn.attention.pooling import CoarseBlocks


def _inputs(*, is_masked: bool = False, coarse: bool = False, num_k: int = 420) -> AttentionInputs:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 2, n, 32, generator=generator) for n in (300, num_k, num_k))
    mask = torch.rand(2, 2, 3, -(-num_k // 64), generator=generator) < 0.4
    mask[0, 0, 1] = False
    block_map = BlockMap.from_mask(mask, num_full_q_blocks=1, num_sink_k_blocks=1)
    key_mask = None
    if is_masked:
        key_mask = torch.rand(2, num_k, generator=generator) < 0.7
        key_mask[0, -(num_k % 64 or 64) :] = False
    return AttentionInputs(
        q=q,
        k=k,
        v=v,
        block_map=block_map,
        key_mask=key_mask,
        coarse=CoarseBlocks.of(k, v, block_map, key_mask) if coarse else None,
    )


class _Lists(NamedTuple):
    mask_block_cnt: Tensor
    mask_block_idx: Tensor
    full_block_cnt: Tensor
    full_block_idx: Tensor
    block_size: tuple[int, int]


def _fa4_by_its_documentation(
    q: Tensor,  # [B, Nq, H, D]
    k: Tensor,  # [B, Nk, H, D]
    v: Tensor,
    *,
    softmax_scale: float,
    block_sparse_tensors: _Lists,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    lists = block_sparse_tensors
    assert return_lse
    assert not lists.mask_block_cnt.any()
    out = torch.full_like(q, float("nan"))
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), float("nan"))
    block_q, block_k = lists.block_size
    for b, h, i in torch.cartesian_prod(*map(torch.arange, lists.full_block_cnt.shape)).tolist():
        rows = slice(i * block_q, (i + 1) * block_q)
        count = int(lists.full_block_cnt[b, h, i])
        if not count:
            continue  # What the kernel leaves there is not to be relied upon.
        blocks = lists.full_block_idx[b, h, i, :count].long()
        keys = (blocks[:, None] * block_k + torch.arange(block_k)).flatten()
        scores = q[b, rows, h] @ k[b, keys, h].T * softmax_scale
        out[b, rows, h] = scores.softmax(-1) @ v[b, keys, h]
        lse[b, h, rows] = scores.logsumexp(-1)
    return out, lse


@pytest.fixture
def _fake_fa4(monkeypatch: pytest.MonkeyPatch) -> None:
    cute: Any = ModuleType("flash_attn.cute")
    cute.flash_attn_func = _fa4_by_its_documentation
    sparsity: Any = ModuleType("flash_attn.cute.block_sparsity")
    sparsity.BlockSparseTensorsTorch = _Lists
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.block_sparsity", sparsity)


CASES = [
    pytest.param({"is_masked": is_masked, "coarse": coarse, "num_k": num_k}, id=f"{name}-{num_k}")
    for is_masked, coarse, name in (
        (False, False, "plain"),
        (True, False, "masked"),
        (False, True, "coarse"),
        (True, True, "masked-coarse"),
    )
    for num_k in (420, 448)
]


@pytest.mark.usefixtures("_fake_fa4")
@pytest.mark.parametrize("case", CASES)
def test_fa4_gets_lists_that_mean_the_map(case: dict[str, Any]) -> None:
    _compare(fa4.run(_inputs(**case)), _inputs(**case))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES)
def test_flex_gets_a_mask_that_means_the_map(case: dict[str, Any]) -> None:
    flex_attention = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention
    inputs = _inputs(**case)
    assert torch.equal(flex.block_mask_of(inputs).to_dense().bool(), inputs.block_map.to_mask())
    _compare(flex.run_with(flex_attention, inputs), inputs)


def _compare(result: tuple[Tensor, Tensor], inputs: AttentionInputs) -> None:
    want, want_lse = reference.run(inputs)
    torch.testing.assert_close(result[0], want, rtol=0, atol=2e-6)
    torch.testing.assert_close(result[1], want_lse, rtol=0, atol=4e-6)


def test_lists_are_ascending_and_packed() -> None:
    mask = torch.tensor([[[[True, False, True], [False, False, False]]]])
    lists = BlockLists.of_mask(mask)
    assert lists.counts.tolist() == [[[2, 0]]]
    assert lists.blocks[0, 0, 0, :2].tolist() == [0, 2]


def test_merging_with_nothing_changes_nothing() -> None:
    out, lse = torch.randn(3, 4), torch.randn(3)
    nothing = torch.zeros(3, 4), torch.full((3,), float("-inf"))
    for merged in (merge(out, lse, *nothing), merge(*nothing, out, lse)):
        assert torch.equal(merged[0], out)
        assert torch.equal(merged[1], lse)
    both = merge(*nothing, *nothing)
    assert torch.equal(both[0], nothing[0])
    assert torch.equal(both[1], nothing[1])


@pytest.mark.parametrize(
    ("backend", "words"),
    [("flex", "CUDA devices only"), ("fa4", r"is not installed|CUDA devices only")],
)
def test_they_say_why_they_cannot_run_here(backend: str, words: str) -> None:
    q = torch.zeros(1, 1, 128, 64)
    everything = BlockMap.from_mask(torch.ones(1, 1, 1, 2, dtype=torch.bool))
    reason = why_not(backend, q, q, q, everything)
    assert reason is not None
    assert re.search(words, reason)
