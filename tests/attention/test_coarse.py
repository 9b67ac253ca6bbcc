# SPDX-License-Identifier: Apache-2.0
"""The coarse term: blocks that a row leaves out contribute through their means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import BackendName, BlockMap, block_sparse_attention, dense_attention

BLOCK_Q, BLOCK_K = 128, 64


def _tokens(batch: int, heads: int, num: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, num, size, generator=generator)


def _case(num_q: int = 300, num_k: int = 420) -> tuple[Tensor, Tensor, Tensor, BlockMap]:
    q, k, v = (_tokens(2, 3, n, 32, seed) for seed, n in enumerate((num_q, num_k, num_k)))
    generator = torch.Generator().manual_seed(9)
    mask = torch.rand(2, 3, -(-num_q // BLOCK_Q), -(-num_k // BLOCK_K), generator=generator) < 0.4
    return q, k, v, BlockMap.from_mask(mask, num_full_q_blocks=1, num_sink_k_blocks=1)


def _by_definition(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, key_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Every left-out block replaced by as many copies of its mean as it has keys: dense softmax."""
    mask = block_map.to_mask()
    out, lse = torch.zeros_like(q), torch.zeros(q.shape[:3], dtype=q.dtype)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        keys, values = k[b, h].clone(), v[b, h].clone()
        for block in range(block_map.num_k_blocks):
            span = slice(block * BLOCK_K, min((block + 1) * BLOCK_K, len(keys)))
            present = key_mask[b, span]
            if not mask[b, h, i // BLOCK_Q, block] and present.any():
                keys[span] = keys[span][present].mean(0)
                values[span] = values[span][present].mean(0)
        scores = (keys @ q[b, h, i]) * q.shape[-1] ** -0.5
        scores = scores[key_mask[b]]
        out[b, h, i] = scores.softmax(0) @ values[key_mask[b]]
        lse[b, h, i] = scores.logsumexp(0)
    return out, lse


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_left_out_block_counts_as_copies_of_its_mean(
    backend: BackendName, is_masked: bool
) -> None:
    q, k, v, block_map = _case()
    key_mask = torch.ones(2, k.shape[2], dtype=torch.bool)
    if is_masked:
        key_mask &= torch.rand(key_mask.shape, generator=torch.Generator().manual_seed(3)) < 0.6
        key_mask[1, :BLOCK_K] = False  # A whole block without keys.
    want, want_lse = _by_definition(q.double(), k.double(), v.double(), block_map, key_mask)
    out, lse = block_sparse_attention(
        q,
        k,
        v,
        block_map,
        backend=backend,
        key_mask=key_mask if is_masked else None,
        coarse=True,
        return_lse=True,
    )
    torch.testing.assert_close(out.double(), want, rtol=0, atol=2e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=4e-6)


def test_it_is_exact_when_the_keys_and_values_of_every_block_are_equal(
    backend: BackendName,
) -> None:
    q, _, _, block_map = _case(300, 384)
    k, v = (_tokens(2, 3, 6, 32, seed).repeat_interleave(BLOCK_K, dim=2) for seed in (5, 6))
    out = block_sparse_attention(q, k, v, block_map, backend=backend, coarse=True)
    want = dense_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), want, rtol=0, atol=2e-5)


def test_it_changes_nothing_when_no_block_is_left_out(backend: BackendName) -> None:
    q, k, v, _ = _case()
    everything = BlockMap.from_mask(torch.ones(2, 3, 3, 7, dtype=torch.bool))
    out = block_sparse_attention(q, k, v, everything, backend=backend, coarse=True)
    want = block_sparse_attention(q, k, v, everything, backend=backend)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-6)


def test_a_row_without_any_listed_block_attends_to_the_means(backend: BackendName) -> None:
    q, k, v = (_tokens(1, 1, 128, 32, seed) for seed in range(3))
    nothing = BlockMap.from_mask(torch.zeros(1, 1, 1, 2, dtype=torch.bool))
    out = block_sparse_attention(q, k, v, nothing, backend=backend, coarse=True)
    means = [x.reshape(1, 1, 2, 64, 32).mean(3) for x in (k, v)]
    torch.testing.assert_close(out, dense_attention(q, *means), rtol=0, atol=1e-6)
    without = block_sparse_attention(q, k, v, nothing, backend=backend)
    assert torch.equal(without, torch.zeros_like(q))
