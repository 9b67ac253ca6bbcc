# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: bfloat16, real launches, sizes beyond the interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ns_sparseattn.attention import (
    BlockMap,
    block_sparse_attention,
    dense_attention,
    select_blocks,
    selection,
)

pytestmark = pytest.mark.gpu

# (batch, heads, queries, keys, head size)
SHAPES = [
    pytest.param((1, 2, 1, 1, 32), id="one-token"),
    pytest.param((2, 3, 517, 391, 64), id="ragged"),
    pytest.param((1, 2, 1024, 1024, 128), id="whole-blocks"),
    pytest.param((1, 4, 3000, 2900, 64), id="many-blocks"),
    pytest.param((1, 2, 700, 1500, 32), id="small-heads"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def _tokens(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def _random_map(
    shape: tuple[int, ...], *, num_full: int = 0, num_sinks: int = 0, keep: float = 0.4
) -> BlockMap:
    batch, heads, num_q, num_k, _ = shape
    blocks = (math.ceil(num_q / 128), math.ceil(num_k / 64))
    generator = torch.Generator().manual_seed(7)
    return BlockMap.from_mask(
        (torch.rand(batch, heads, *blocks, generator=generator) < keep).cuda(),
        num_full_q_blocks=min(num_full, blocks[0] - 1),
        num_sink_k_blocks=min(num_sinks, blocks[1] - 1),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_masked", [False, True])
def test_error_is_at_most_twice_that_of_dense_attention(
    shape: tuple[int, ...], dtype: torch.dtype, is_masked: bool
) -> None:
    batch, heads, num_q, num_k, size = shape
    q, k, v = (
        _tokens(batch, heads, n, size, seed=i, dtype=dtype)
        for i, n in enumerate((num_q, num_k, num_k))
    )
    block_map = _random_map(shape, num_full=1, num_sinks=2)
    key_mask = None
    keep = block_map.to_mask().repeat_interleave(128, 2)[:, :, :num_q]
    keep = keep.repeat_interleave(64, 3)[..., :num_k]
    if is_masked:
        key_mask = torch.rand(batch, num_k, generator=torch.Generator().manual_seed(5)) < 0.7
        key_mask = key_mask.cuda()
        keep = keep & key_mask[:, None, None]
    out, lse = block_sparse_attention(
        q, k, v, block_map, backend="triton", key_mask=key_mask, return_lse=True
    )
    truth, truth_lse = block_sparse_attention(
        q.double(),
        k.double(),
        v.double(),
        block_map,
        backend="reference",
        key_mask=key_mask,
        return_lse=True,
    )
    has_keys = keep.any(-1)
    if has_keys.any():
        dense = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        budget = 2 * (dense - truth)[has_keys].abs().max()
        rounding = 4 * torch.finfo(torch.float32).eps * truth.abs().max()
        assert (out - truth)[has_keys].abs().max() <= budget + rounding
        assert (lse - truth_lse)[has_keys].abs().max() < 1e-4
    assert bool((out[~has_keys] == 0).all())
    assert bool(lse[~has_keys].isneginf().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_coarse_term_agrees_with_gather(dtype: torch.dtype) -> None:
    shape = (2, 2, 1500, 1700, 64)
    q, k, v = (_tokens(2, 2, n, 64, seed=i, dtype=dtype) for i, n in enumerate((1500, 1700, 1700)))
    block_map = _random_map(shape, num_full=1, num_sinks=2, keep=0.2)
    out, want = (
        block_sparse_attention(q, k, v, block_map, backend=backend, coarse=True)
        for backend in ("triton", "gather")
    )
    # Weights and means are rounded to the inputs' type.
    assert (out - want).abs().max() < 8 * torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_repeated_calls_give_the_same_bits(dtype: torch.dtype) -> None:
    q, k, v = (_tokens(1, 16, 20_000, 64, seed=i, dtype=dtype) for i in range(3))
    block_map = select_blocks(q, k, mass=0.5, max_density=0.3, num_full_q_blocks=2)
    outs = [
        block_sparse_attention(q, k, v, block_map, backend="triton", coarse=True, return_lse=True)
        for _ in range(3)
    ]
    for out, lse in outs[1:]:
        assert torch.equal(out, outs[0][0])
        assert torch.equal(lse, outs[0][1])


def test_all_blocks_are_dense_attention() -> None:
    q, k, v = (_tokens(1, 8, 8192, 64, seed=i, dtype=torch.bfloat16) for i in range(3))
    everything = BlockMap.from_mask(torch.ones(1, 8, 64, 128, dtype=torch.bool, device="cuda"))
    out = block_sparse_attention(q, k, v, everything, backend="triton")
    want = dense_attention(q.float(), k.float(), v.float())
    dense_error = (dense_attention(q, k, v) - want).abs().max()
    assert (out - want).abs().max() <= 2 * dense_error


@pytest.mark.parametrize(("mass", "max_density"), [(0.6, 1.0), (None, 0.1), (0.9, 0.2)])
def test_selection_keeps_what_the_torch_path_keeps(
    mass: float | None, max_density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Clustered tokens; 24 heads of 700 rows take the larger tile.
    cluster = torch.arange(90_000, device="cuda") // 90
    q, k = (
        2 * _tokens(1, 24, 1000, 64, seed=0)[:, :, cluster] + _tokens(1, 24, 90_000, 64, seed=1 + i)
        for i in range(2)
    )
    got = select_blocks(q, k, mass=mass, max_density=max_density)
    again = select_blocks(q, k, mass=mass, max_density=max_density)
    monkeypatch.setattr(selection, "_has_kernels", lambda means: False)
    want = select_blocks(q, k, mass=mass, max_density=max_density)
    assert torch.equal(got.columns, again.columns)
    # Sums in another order may turn a block that lies on the threshold.
    assert int((got.counts - want.counts).abs().max()) <= 1
    assert float((got.to_mask() != want.to_mask()).float().mean()) < 1e-4


def test_offsets_beyond_32_bits() -> None:
    # 2.2e9 numbers each in keys and values, and the last head looked at.
    num_tokens, heads = 1_070_000, 16
    needed_gib = 20
    if torch.cuda.mem_get_info()[0] < needed_gib * 2**30:
        pytest.skip(f"This takes {needed_gib} GiB of free GPU memory.")
    k = torch.zeros(1, heads, num_tokens, 128, dtype=torch.float16, device="cuda")
    k[:, -1] = torch.randn(num_tokens, 128, device="cuda").half()
    q = _tokens(1, heads, 256, 128, seed=0, dtype=torch.float16)
    num_blocks = math.ceil(num_tokens / 64)
    mask = torch.zeros(1, heads, 2, num_blocks, dtype=torch.bool, device="cuda")
    mask[..., ::1000] = True
    mask[..., -2:] = True
    out = block_sparse_attention(q, k, k, BlockMap.from_mask(mask), backend="triton")
    keep = mask[0, -1, 0].repeat_interleave(64)[:num_tokens]
    keys = k[:, -1:, keep].float()
    want = F.scaled_dot_product_attention(q[:, -1:].float(), keys, keys)
    assert (out[:, -1:] - want).abs().max() < 2e-3
