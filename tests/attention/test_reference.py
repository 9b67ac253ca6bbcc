# SPDX-License-Identifier: Apache-2.0
"""The reference against torch's own attention and against cases small enough to do by hand."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from ns_sparseattn.attention import BlockMap, block_sparse_attention


def test_all_blocks_kept_is_dense_attention() -> None:
    q, k, v = (torch.randn(2, 3, size, 32, dtype=torch.float64) for size in (150, 130, 130))
    block_map = BlockMap.from_mask(torch.ones(2, 3, 2, 3, dtype=torch.bool))
    out = block_sparse_attention(q, k, v, block_map, backend="reference")
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-12)


def test_two_keys_in_two_blocks_by_hand() -> None:
    q = torch.tensor([[[[2.0]], [[2.0]]]])  # Two heads, one query of size 1.
    k = torch.tensor([[[[1.0], [3.0]], [[1.0], [3.0]]]])
    v = torch.tensor([[[[10.0], [20.0]], [[10.0], [20.0]]]])
    mask = torch.tensor([[[[True, True]], [[False, True]]]])
    block_map = BlockMap.from_mask(mask, block_q=1, block_k=1)
    out, lse = block_sparse_attention(q, k, v, block_map, backend="reference", return_lse=True)
    weight = math.exp(6) / (math.exp(2) + math.exp(6))
    torch.testing.assert_close(out.flatten(), torch.tensor([10 + 10 * weight, 20.0]))
    torch.testing.assert_close(
        lse.flatten(), torch.tensor([math.log(math.exp(2) + math.exp(6)), 6.0])
    )


def test_a_query_without_keys_gives_zeros_and_minus_infinity() -> None:
    q = torch.randn(1, 1, 4, 8)
    block_map = BlockMap.from_mask(torch.zeros(1, 1, 2, 2, dtype=torch.bool), block_q=2, block_k=2)
    out, lse = block_sparse_attention(q, q, q, block_map, backend="reference", return_lse=True)
    assert torch.equal(out, torch.zeros_like(q))
    assert bool(lse.isneginf().all())
