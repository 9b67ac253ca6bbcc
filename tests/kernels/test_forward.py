# SPDX-License-Identifier: Apache-2.0
"""The forward kernel under Triton's interpreter, against the formula in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ns_sparseattn.attention import (
    AttentionPlan,
    AttentionRun,
    BlockMap,
    BlockSparsePolicy,
    TokenLayout,
    block_sparse_attention,
)
from ns_sparseattn.attention.pooling import CoarseBlocks

pytestmark = pytest.mark.usefixtures("interpreter")

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
BLOCK_Q, BLOCK_K = 128, 64

# (batch, heads, queries, keys, head size)
SHAPES = [
    pytest.param((1, 2, 1, 1, 32), id="one-token"),
    pytest.param((1, 1, 128, 64, 64), id="one-block"),
    pytest.param((2, 2, 300, 391, 64), id="ragged"),
    pytest.param((1, 2, 256, 256, 32), id="whole-blocks"),
    pytest.param((1, 1, 200, 330, 128), id="large-heads"),
]
DTYPES = [torch.float32, torch.float16]


def _tokens(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _random_map(
    shape: tuple[int, ...], *, keep: float = 0.5, num_full: int = 0, num_sinks: int = 0
) -> BlockMap:
    batch, heads, num_q, num_k, _ = shape
    blocks = (math.ceil(num_q / BLOCK_Q), math.ceil(num_k / BLOCK_K))
    generator = torch.Generator().manual_seed(7)
    return BlockMap.from_mask(
        torch.rand(batch, heads, *blocks, generator=generator) < keep,
        num_full_q_blocks=min(num_full, blocks[0]),
        num_sink_k_blocks=min(num_sinks, blocks[1]),
    )


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    key_mask: Tensor | None = None,
    coarse: bool = False,
    num_parts: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the kernel with the tile that the 16-bit types have, which is also the quickest here."""
    from ns_sparseattn.kernels.configs import ForwardConfig
    from ns_sparseattn.kernels.forward import CoarseTerm, KeyBlockLists, block_sparse_forward

    means = CoarseBlocks.of(k, v, block_map, key_mask) if coarse else None
    return block_sparse_forward(
        q,
        k,
        v,
        KeyBlockLists(
            row_offsets=block_map.row_offsets,
            columns=block_map.columns,
            block_q=block_map.block_q,
            block_k=block_map.block_k,
            num_full_q_blocks=block_map.num_full_q_blocks,
            num_sink_k_blocks=block_map.num_sink_k_blocks,
        ),
        key_mask=key_mask,
        coarse=means
        and CoarseTerm(keys=means.keys, values=means.values, log_counts=means.log_counts),
        config=ForwardConfig(
            tile_q=128, small_k=32, num_warps=4, num_stages=3, programs_per_multiprocessor=2
        ),
        num_parts=num_parts,
    )


def _truth(
    q: Tensor, k: Tensor, v: Tensor, block_map: BlockMap, key_mask: Tensor | None, coarse: bool
) -> tuple[Tensor, Tensor]:
    return block_sparse_attention(
        q.double(),
        k.double(),
        v.double(),
        block_map,
        backend="reference",
        key_mask=key_mask,
        coarse=coarse,
        return_lse=True,
    )


def _dense_error(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    key_mask: Tensor | None,
    coarse: bool,
    truth: Tensor,
) -> Tensor:
    """The error of torch's dense attention in the same dtype, blocks left out by a mask."""
    num_k = k.shape[2]
    keep = block_map.to_mask().repeat_interleave(BLOCK_Q, 2)[:, :, : q.shape[2]]
    listed = keep[..., : block_map.num_listed_k_blocks]
    keep = keep.repeat_interleave(BLOCK_K, 3)[..., :num_k]
    if key_mask is not None:
        keep = keep & key_mask[:, None, None]
    bias = torch.zeros(keep.shape).masked_fill(~keep, float("-inf"))
    if coarse:
        means = CoarseBlocks.of(k, v, block_map, key_mask)
        of_means = means.log_counts[:, None, None].expand(listed.shape)
        bias = torch.cat([bias, of_means.masked_fill(listed, float("-inf"))], dim=-1)
        k, v = (torch.cat([x, y.to(x)], 2) for x, y in ((k, means.keys), (v, means.values)))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    has_keys = bias.isfinite().any(-1)
    return (out - truth)[has_keys].abs().max() if has_keys.any() else torch.tensor(0.0)


def _assert_as_exact_as_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_map: BlockMap,
    *,
    key_mask: Tensor | None = None,
    coarse: bool = False,
    num_parts: int | None = None,
) -> None:
    """Hold the kernel's error to twice that of dense attention, plus float32 rounding."""
    out, lse = _attend(q, k, v, block_map, key_mask=key_mask, coarse=coarse, num_parts=num_parts)
    want, want_lse = _truth(q, k, v, block_map, key_mask, coarse)
    dense = _dense_error(q, k, v, block_map, key_mask, coarse, want)
    scale = want.abs().max()
    assert out.dtype == q.dtype
    assert (out - want).abs().max() <= 2 * dense + 4 * torch.finfo(torch.float32).eps * scale
    assert torch.equal(lse.isfinite(), want_lse.isfinite())
    is_finite = want_lse.isfinite()
    # The means are rounded to the inputs' type, and the scores by as much.
    tolerance = 4e-6 if q.dtype == torch.float32 or not coarse else 4e-3
    assert ((lse - want_lse)[is_finite].abs() <= tolerance).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coarse", [False, True], ids=["plain", "coarse"])
def test_error_is_at_most_twice_that_of_dense_attention(
    shape: tuple[int, ...], dtype: torch.dtype, coarse: bool
) -> None:
    batch, heads, num_q, num_k, size = shape
    q, k, v = (
        _tokens(batch, heads, n, size, seed=i, dtype=dtype)
        for i, n in enumerate((num_q, num_k, num_k))
    )
    _assert_as_exact_as_dense(q, k, v, _random_map(shape), coarse=coarse)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lists_of_one_block_up_to_all(dtype: torch.dtype) -> None:
    # Eight rows: the first lists one block, the last all, the ragged one among them.
    q, k, v = (_tokens(1, 1, n, 32, seed=n, dtype=dtype) for n in (1000, 500, 500))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    mask = order.argsort() < torch.arange(1, 9)[:, None]
    _assert_as_exact_as_dense(q, k, v, BlockMap.from_mask(mask[None, None]))


@pytest.mark.parametrize("num_parts", [1, 2, 9])
@pytest.mark.parametrize("coarse", [False, True], ids=["plain", "coarse"])
def test_full_rows_and_sinks(num_parts: int, coarse: bool) -> None:
    # Seven key blocks: of nine parts some have nothing to do.
    shape = (2, 2, 300, 440, 32)
    q, k, v = (_tokens(2, 2, n, 32, seed=n) for n in (300, 440, 441))
    block_map = _random_map(shape, keep=0.3, num_full=2, num_sinks=2)
    _assert_as_exact_as_dense(
        q, k, v[:, :, :440].contiguous(), block_map, coarse=coarse, num_parts=num_parts
    )


@pytest.mark.parametrize(("num_full", "num_sinks"), [(2, 0), (0, 4), (2, 4)])
def test_every_row_may_be_full_and_every_block_a_sink(num_full: int, num_sinks: int) -> None:
    q, k, v = (_tokens(1, 2, 200, 32, seed=seed) for seed in range(3))
    block_map = BlockMap(
        num_batch=1,
        num_heads=2,
        num_q_blocks=2,
        num_k_blocks=4,
        block_q=BLOCK_Q,
        block_k=BLOCK_K,
        row_offsets=torch.zeros(2 * (2 - num_full) + 1, dtype=torch.int64),
        columns=torch.zeros(0, dtype=torch.int32),
        num_full_q_blocks=num_full,
        num_sink_k_blocks=num_sinks,
    )
    out, _ = _attend(q, k, v, block_map, num_parts=2)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("coarse", "num_parts"), [(False, 1), (True, 3)])
def test_masked_keys_do_not_exist_whatever_they_hold(
    dtype: torch.dtype, coarse: bool, num_parts: int
) -> None:
    shape = (2, 1, 300, 520, 32)
    q, k, v = (_tokens(2, 1, n, 32, seed=i, dtype=dtype) for i, n in enumerate((300, 520, 520)))
    key_mask = torch.rand(2, 520, generator=torch.Generator().manual_seed(3)) < 0.6
    key_mask[0] = True
    key_mask[0, 300:384] = False  # Padding before the sinks, as the layout has it.
    key_mask[1, 64:128] = False  # A block without keys.
    block_map = _random_map(shape, num_full=1, num_sinks=3)
    for x in (k, v):
        x.masked_fill_(~key_mask[:, None, :, None], 0.0)
    want = _attend(q, k, v, block_map, key_mask=key_mask, coarse=coarse, num_parts=num_parts)
    _assert_as_exact_as_dense(
        q, k, v, block_map, key_mask=key_mask, coarse=coarse, num_parts=num_parts
    )
    for x in (k, v):
        x.masked_fill_(~key_mask[:, None, :, None], float("nan"))
    got = _attend(q, k, v, block_map, key_mask=key_mask, coarse=coarse, num_parts=num_parts)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("is_masked", [False, True])
def test_queries_without_keys_give_zeros(is_masked: bool) -> None:
    q, k, v = (_tokens(1, 1, n, 32, seed=n) for n in (256, 200, 201))
    mask = torch.tensor([[[[False] * 4, [True] * 4]]])
    key_mask = torch.zeros(1, 200, dtype=torch.bool) if is_masked else None
    block_map = BlockMap.from_mask(mask)
    out, lse = _attend(q, k, v[:, :, :200].contiguous(), block_map, key_mask=key_mask)
    num_without = 256 if is_masked else 128
    assert torch.equal(out[:, :, :num_without], torch.zeros(1, 1, num_without, 32))
    assert bool(lse[:, :, :num_without].isneginf().all())
    assert bool(lse[:, :, num_without:].isfinite().all())


@pytest.mark.parametrize(
    ("block_q", "block_k", "num_k"),
    # In the first, lists are longer than a tile of the coarse term, which has several.
    [(16, 16, 1000), (64, 128, 300), (32, 32, 300)],
)
def test_other_block_sizes(block_q: int, block_k: int, num_k: int) -> None:
    q, k, v = (_tokens(1, 2, n, 32, seed=i) for i, n in enumerate((100, num_k, num_k)))
    generator = torch.Generator().manual_seed(1)
    blocks = (math.ceil(100 / block_q), math.ceil(num_k / block_k))
    block_map = BlockMap.from_mask(
        torch.rand(1, 2, *blocks, generator=generator) < 0.5, block_q, block_k
    )
    out, lse = _attend(q, k, v, block_map, coarse=True)
    want, want_lse = _truth(q, k, v, block_map, None, True)
    assert (out - want).abs().max() < 2e-6
    assert (lse - want_lse).abs().max() < 4e-6


def test_many_ragged_blocks_in_one_list() -> None:
    # More of them than the kernel counts at once.
    q, k, v = (_tokens(1, 1, n, 32, seed=i) for i, n in enumerate((16, 2500, 2500)))
    key_mask = torch.rand(1, 2500, generator=torch.Generator().manual_seed(1)) < 0.8
    key_mask[:, :64] = True
    block_map = BlockMap.from_mask(torch.ones(1, 1, 1, 157, dtype=torch.bool), 16, 16)
    out, _ = _attend(q, k, v, block_map, key_mask=key_mask)
    want, _ = _truth(q, k, v, block_map, key_mask, False)
    assert (out - want).abs().max() < 2e-6


def test_repeated_calls_and_other_batch_slots_give_the_same_bits() -> None:
    shape = (2, 2, 200, 330, 64)
    q, k, v = (
        _tokens(2, 2, n, 64, seed=i, dtype=torch.float16) for i, n in enumerate((200, 330, 330))
    )
    block_map = _random_map(shape, num_full=1, num_sinks=1)
    first = _attend(q, k, v, block_map, coarse=True, num_parts=2)
    again = _attend(q, k, v, block_map, coarse=True, num_parts=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    alone_map = BlockMap.from_mask(
        block_map.to_mask()[1:], num_full_q_blocks=1, num_sink_k_blocks=1
    )
    alone = _attend(q[1:], k[1:], v[1:], alone_map, coarse=True, num_parts=2)
    assert all(torch.equal(a[1:], b) for a, b in zip(first, alone, strict=True))


@pytest.mark.parametrize("coarse", [False, True])
def test_nan_reaches_exactly_the_queries_that_see_it(coarse: bool) -> None:
    # The last key block is ragged, so the other loop is walked as well.
    q, k, v = (_tokens(1, 2, n, 32, seed=n) for n in (256, 250, 251))
    v = v[:, :, :250].contiguous()
    mask = torch.ones(1, 2, 2, 4, dtype=torch.bool)
    mask[0, 1, 0, 1] = mask[0, 1, 0, 3] = False
    q[0, 0, 5, 7] = float("nan")
    k[0, 1, 100, 0] = v[0, 1, 249, 3] = float("nan")
    out, lse = _attend(q, k, v, BlockMap.from_mask(mask), coarse=coarse)
    is_bad = torch.zeros(1, 2, 256, dtype=torch.bool)
    is_bad[0, 0, 5] = True
    # Means of what is left out are seen as well.
    is_bad[0, 1, 0 if coarse else 128 :] = True
    assert torch.equal(out.isnan().any(-1), is_bad)
    assert torch.equal(lse.isnan(), is_bad)


def test_tensors_may_have_any_strides() -> None:
    shape = (1, 2, 200, 200, 32)
    q, k, v = (_tokens(1, 200, 2, 32, seed=seed) for seed in range(3))
    block_map = _random_map(shape)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    got = _attend(q, k, v, block_map)
    want = _attend(q.contiguous(), k.contiguous(), v.contiguous(), block_map)
    assert torch.equal(got[0], want[0])
    columns = block_map.columns.repeat_interleave(2)[::2]
    assert not columns.is_contiguous()
    got = _attend(q, k, v, replace(block_map, columns=columns))
    assert torch.equal(got[0], want[0])


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    # Sparse files: memory that is never touched takes no space. Keys are their own values.
    from ns_sparseattn.kernels import forward
    from ns_sparseattn.kernels.configs import FORWARD

    size, num_k, start = 128, 2**24 + 192, 2**31 + 5
    k = _sparse_file(tmp_path / "keys", (1, 1, num_k, size), torch.float16)
    columns = _sparse_file(tmp_path / "columns", (start + 2,), torch.int32)
    last = num_k // BLOCK_K - 1
    k[0, 0, :64] = _tokens(64, size, seed=0, dtype=torch.float16)
    k[0, 0, last * 64 :] = _tokens(64, size, seed=1, dtype=torch.float16)
    columns[start:] = torch.tensor([0, last], dtype=torch.int32)
    q = _tokens(1, 1, 20, size, seed=2, dtype=torch.float16)
    lists = forward.KeyBlockLists(
        row_offsets=torch.tensor([start, start + 2]), columns=columns, block_q=128, block_k=64
    )
    out, _ = forward.block_sparse_forward(q, k, k, lists, config=FORWARD[9, 0][64])
    keys = torch.cat([k[:, :, :64], k[:, :, last * 64 :]], dim=2).double()
    want = F.scaled_dot_product_attention(q.double(), keys, keys)
    assert (out - want).abs().max() < 2e-3


def _sparse_file(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    numbers = math.prod(shape)
    with path.open("wb") as file:
        file.truncate(numbers * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=numbers, dtype=dtype).reshape(shape)


@pytest.mark.parametrize("name", ["tiny", "nosink", "vggt_model_cdf90", "pi3_model_ratio50"])
def test_published_masks_give_what_gather_gives(name: str) -> None:
    arrays = np.load(GOLDEN / f"block_mask_{name}.npz")
    masks = {x.tobytes(): x for key, x in arrays.items() if key.startswith("mask_")}
    assert masks
    for mask in masks.values():
        mask = mask[:, :4]  # Four heads are enough for the interpreter.
        block_map = BlockMap.from_mask(torch.from_numpy(mask))
        # The last block of each is ragged, as where the masks were recorded.
        num_q, num_k = mask.shape[2] * BLOCK_Q - 30, mask.shape[3] * BLOCK_K - 30
        q, k, v = (_tokens(*mask.shape[:2], n, 32, seed=n) for n in (num_q, num_k, num_k + 1))
        v = v[:, :, :num_k].contiguous()
        out, lse = _attend(q, k, v, block_map)
        want, want_lse = block_sparse_attention(
            q, k, v, block_map, backend="gather", return_lse=True
        )
        torch.testing.assert_close(out, want, rtol=0, atol=4e-6)
        torch.testing.assert_close(lse, want_lse, rtol=0, atol=4e-6)


def test_a_plan_may_name_the_backend() -> None:
    # The table's own tile, key mask, full rows, sinks and coarse term, as a layer of a model.
    tokens = TokenLayout(num_frames=3, num_special=5, grid_height=7, grid_width=9)
    q, k, v = (_tokens(1, 2, tokens.num_tokens, 32, seed=seed) for seed in range(3))
    outs = []
    for backend in ("triton", "gather"):
        policy = BlockSparsePolicy(max_density=0.5, backend=backend)
        run = AttentionRun(AttentionPlan(default=policy), tokens, 1)
        outs.append(run.attend(0, q, k, v))
        assert run.stats[0].backend == backend
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=2e-6)
