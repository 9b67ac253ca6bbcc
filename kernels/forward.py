# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention, forward: lists of key blocks, sinks, key mask, coarse term, log-sum-exp.

One program computes a tile of queries of one query block, in three loops over keys. The last does
nearly all the work; it masks nothing, and what the others need is out of its registers.

1. Ragged blocks, listed or sinks: those with keys that do not exist, by mask or because the
   sequence ends.
2. The coarse term: the means of all listed key blocks, the row's own masked out.
3. Whole blocks: those that the row lists, then the sinks, which need no list.

Full rows (special queries) are walked the same way, as if every key block were a sink. They are
launched first, and in parts where a whole one would be the tail; a second kernel merges the parts.

Softmax runs in base 2: the scale times log2(e) is folded into the exponent's one multiply-add.
Sums and statistics are float32. Offsets of batch slots, heads and blocks are int64.

Axes: ``B`` batch, ``H`` heads, ``Nq``/``Nk`` tokens, ``R`` listed query blocks, ``C`` listed key
blocks, ``D`` head size, ``P`` parts of a full row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .configs import ForwardConfig, forward_config
from .schedule import plan_schedule

TRITON_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
OLDEST_TRITON = (3, 6)
"""The oldest version that these kernels were compiled and interpreted with."""
HEAD_SIZES = (32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
BLOCK_SIZES = (16, 32, 64, 128)
"""Tokens that a query block or a key block may have."""

_SIZES = (
    "num_batch_heads",
    "num_heads",
    "num_q",
    "num_k",
    "num_listed_q",
    "num_full_q",
    "num_listed_k",
    "num_k_blocks",
    "num_parts",
    "num_full_tokens",
)
"""Sizes that kernels are not compiled anew for: what is launched is what was compiled in tests."""
_LOG2_E = 1.4426950408889634
_LN_2 = tl.constexpr(0.6931471805599453)
_MERGED_QUERIES = 16
"""Queries of a program that merges parts."""
_LIST_WINDOW = tl.constexpr(128)
"""List entries that are read at once when the ragged ones are counted."""


@dataclass(frozen=True, kw_only=True)
class KeyBlockLists:
    """Which key blocks each query block attends to: compressed rows and two ranges without a list.

    Rows are numbered batch-major, then head, then query block. Column ids ascend within a row.
    """

    row_offsets: Tensor  # [B * H * R + 1] int64
    columns: Tensor  # [row_offsets[-1]] int32
    block_q: int
    """Tokens of a query block."""
    block_k: int
    """Tokens of a key block."""
    num_full_q_blocks: int = 0
    """Trailing query blocks that attend to everything."""
    num_sink_k_blocks: int = 0
    """Trailing key blocks that everyone attends to."""


@dataclass(frozen=True, kw_only=True)
class CoarseTerm:
    """The listed key blocks as one key and one value each, for the rows that leave them out."""

    keys: Tensor  # [B, H, C, D]
    values: Tensor  # [B, H, C, D]
    log_counts: Tensor  # [B, C] float32
    """Natural logarithm of the number of each block's keys, minus infinity for none."""


def block_sparse_forward(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
    lists: KeyBlockLists,
    *,
    key_mask: Tensor | None = None,  # [B, Nk] bool
    coarse: CoarseTerm | None = None,
    config: ForwardConfig | None = None,
    num_parts: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``softmax(q k^T / sqrt(D)) v`` over the listed key blocks.

    Tensors that are not contiguous are copied. The caller guarantees that shapes fit each other and
    that the ids of the lists are in range.

    Args:
        q: ``[B, H, Nq, D]``, one of `DTYPES`, D one of `HEAD_SIZES`.
        k: ``[B, H, Nk, D]``, like q.
        v: ``[B, H, Nk, D]``, like q.
        lists: Key blocks of each query block.
        key_mask: True where a key exists; a query left without any key gives zeros.
        coarse: What left-out blocks contribute; means are rounded to q's dtype.
        config: Tile, warps and stages instead of the table's choice.
        num_parts: Parts of each full row instead of those that `plan_schedule` chooses.

    Returns:
        Output ``[B, H, Nq, D]`` in q's dtype and the natural log-sum-exp ``[B, H, Nq]`` in float32,
        minus infinity without any key. Repeated calls on one device give the same bits.
    """
    batch, heads, num_q, head_size = q.shape
    num_k = k.shape[2]
    num_k_blocks = math.ceil(num_k / lists.block_k)
    num_listed_q = math.ceil(num_q / lists.block_q) - lists.num_full_q_blocks
    num_listed_k = num_k_blocks - lists.num_sink_k_blocks
    if config is None:
        config = forward_config(_capability(q.device), head_size, q.dtype)
    schedule = plan_schedule(
        lists.row_offsets,
        num_entries=lists.columns.shape[0],
        num_full_rows=batch * heads * lists.num_full_q_blocks,
        num_k_blocks=num_k_blocks,
        num_sink_k_blocks=lists.num_sink_k_blocks,
        num_tokens=num_k,
        num_slots=_num_multiprocessors(q.device) * config.programs_per_multiprocessor,
    )
    num_parts = schedule.num_parts if num_parts is None else num_parts
    tile_q = min(config.tile_q, lists.block_q)
    small_k = min(config.small_k, lists.block_k)

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, num_q), dtype=torch.float32, device=q.device)
    parts = _Parts.empty(q, num_q - num_listed_q * lists.block_q, num_parts)
    num_whole = None
    if key_mask is not None:
        key_mask = key_mask.contiguous()
        num_whole = _leading_whole_blocks(key_mask, lists.block_k, num_listed_k)
    means = None if coarse is None else _PaddedMeans.of(coarse, q.dtype, small_k)
    num_units = batch * heads * (lists.num_full_q_blocks * num_parts + num_listed_q)
    # Triton launches on the current device, which may be another one.
    with torch.cuda.device_of(q):
        _attend_kernel[(num_units * (lists.block_q // tile_q),)](
            q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            out,
            lse,
            None if parts is None else parts.out,
            None if parts is None else parts.lse,
            lists.row_offsets.contiguous(),
            lists.columns.contiguous(),
            schedule.order,
            key_mask,
            num_whole,
            None if means is None else means.keys,
            None if means is None else means.values,
            None if means is None else means.bias,
            head_size**-0.5 * _LOG2_E,
            batch * heads,
            heads,
            num_q,
            num_k,
            num_listed_q,
            lists.num_full_q_blocks,
            num_listed_k,
            num_k_blocks,
            num_parts,
            **_constants(
                HEAD_SIZE=head_size,
                BLOCK_Q=lists.block_q,
                BLOCK_K=lists.block_k,
                TILE_Q=tile_q,
                SMALL_K=small_k,
                HAS_ORDER=schedule.order is not None,
                HAS_KEY_MASK=key_mask is not None,
                HAS_COARSE=coarse is not None,
                IS_SPLIT=parts is not None,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
            ),
        )
        if parts is not None:
            num_full_tokens = parts.lse.shape[-1]
            _merge_kernel[(batch * heads * math.ceil(num_full_tokens / _MERGED_QUERIES),)](
                parts.out,
                parts.lse,
                out,
                lse,
                num_q,
                num_full_tokens,
                num_parts,
                **_constants(HEAD_SIZE=head_size, TILE=_MERGED_QUERIES, num_warps=4),
            )
    return out, lse


def _constants(**values: Any) -> dict[str, Any]:
    """Return what a kernel is compiled for; type checkers would take it for arguments."""
    return values


def is_interpreted() -> bool:
    """Return whether Triton's interpreter runs these kernels, which needs no GPU."""
    return not isinstance(_attend_kernel, triton.JITFunction)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What the parts of full rows give, before they are merged."""

    out: Tensor  # [P, B, H, n, D] float32
    lse: Tensor  # [P, B, H, n] float32

    @classmethod
    def empty(cls, q: Tensor, num_full_tokens: int, num_parts: int) -> _Parts | None:
        """Return memory for the queries of all full rows; none if there is nothing to merge."""
        if num_parts == 1 or num_full_tokens <= 0:
            return None
        shape = (num_parts, *q.shape[:2], num_full_tokens)
        return cls(
            out=torch.empty((*shape, q.shape[3]), dtype=torch.float32, device=q.device),
            lse=torch.empty(shape, dtype=torch.float32, device=q.device),
        )


@dataclass(frozen=True, kw_only=True)
class _PaddedMeans:
    """The coarse term in whole tiles, so that its loop need not mask the end."""

    keys: Tensor  # [B, H, tiles * small_k, D]
    values: Tensor  # [B, H, tiles * small_k, D]
    bias: Tensor  # [B, tiles * small_k] float32
    """Base-2 logarithm of the number of keys; minus infinity for none and for the padding."""

    @classmethod
    def of(cls, coarse: CoarseTerm, dtype: torch.dtype, small_k: int) -> _PaddedMeans:
        extra = -coarse.keys.shape[2] % small_k
        bias = F.pad(coarse.log_counts.float() * _LOG2_E, (0, extra), value=float("-inf"))
        return cls(
            keys=F.pad(coarse.keys.to(dtype), (0, 0, 0, extra)).contiguous(),
            values=F.pad(coarse.values.to(dtype), (0, 0, 0, extra)).contiguous(),
            bias=bias.contiguous(),
        )


def _capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability; for the interpreter any will do."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)


def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _leading_whole_blocks(key_mask: Tensor, block_k: int, num_listed_k: int) -> Tensor:
    """Return how many blocks have all their keys before the first that has not.

    Returns:
        ``[B, 2]`` int32: among the listed key blocks, and among the sinks.
    """
    num_blocks = math.ceil(key_mask.shape[1] / block_k)
    padded = F.pad(key_mask, (0, num_blocks * block_k - key_mask.shape[1]))
    is_whole = padded.reshape(-1, num_blocks, block_k).all(-1)
    parts = (is_whole[:, :num_listed_k], is_whole[:, num_listed_k:])
    return torch.stack([part.cumprod(-1).sum(-1) for part in parts], dim=-1).to(torch.int32)


@triton.jit
def _accumulate_finite(scores, v, acc, peak, total, scale):
    """Take raw scores ``[TILE_Q, keys]``, none of them masked, into the running softmax."""
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
    weights = tl.math.exp2(scores * scale - new_peak[:, None])
    decay = tl.math.exp2(peak - new_peak)
    total = total * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return acc, new_peak, total


@triton.jit
def _accumulate_masked(scores, v, acc, peak, total):
    """Take scaled scores ``[TILE_Q, keys]``, any of them minus infinity, into the softmax."""
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    # Minus infinity minus itself is NaN: as long as a query has no key, shift by zero.
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.math.exp2(scores - shift[:, None])
    decay = tl.math.exp2(peak - shift)
    total = total * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return acc, new_peak, total


@triton.jit
def _count_ragged_entries(list_ptr, length, whole_listed, ragged_listed):
    """Count the list's entries from `whole_listed` on; ids ascend, so they are the last ones."""
    count = 0
    for start in range(length - tl.minimum(length, ragged_listed), length, _LIST_WINDOW):
        offs = start + tl.arange(0, _LIST_WINDOW)
        blocks = tl.load(list_ptr + offs, mask=offs < length, other=-1)
        count += tl.sum((blocks >= whole_listed).to(tl.int32))
    return count


@triton.jit(do_not_specialize=_SIZES)
def _attend_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    parts_out_ptr,
    parts_lse_ptr,
    row_offsets_ptr,
    columns_ptr,
    order_ptr,
    key_mask_ptr,
    whole_ptr,
    coarse_k_ptr,
    coarse_v_ptr,
    bias_ptr,
    scale,
    num_batch_heads,
    num_heads,
    num_q,
    num_k,
    num_listed_q,
    num_full_q,
    num_listed_k,
    num_k_blocks,
    num_parts,
    HEAD_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_Q: tl.constexpr,
    SMALL_K: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr,
    HAS_COARSE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    TILES: tl.constexpr = BLOCK_Q // TILE_Q
    unit = tl.program_id(0) // TILES
    tile = tl.program_id(0) % TILES

    # Which row: the parts of full rows come first, then the listed rows.
    num_full_units = num_batch_heads * num_full_q * num_parts
    is_full = unit < num_full_units
    part = unit % num_parts
    full_row = unit // num_parts
    row = tl.where(is_full, 0, unit - num_full_units)
    if HAS_ORDER:
        row = tl.load(order_ptr + row, mask=unit >= num_full_units, other=0)
    full_per_head = tl.maximum(num_full_q, 1)
    rows_per_head = tl.maximum(num_listed_q, 1)
    batch_head = tl.where(is_full, full_row // full_per_head, row // rows_per_head)
    q_block = tl.where(is_full, num_listed_q + full_row % full_per_head, row % rows_per_head)
    batch = (batch_head // num_heads).to(tl.int64)

    # Its list; that of a full row is empty.
    list_start = tl.load(row_offsets_ptr + row, mask=unit >= num_full_units, other=0)
    list_end = tl.load(row_offsets_ptr + row + 1, mask=unit >= num_full_units, other=0)
    length = (list_end - list_start).to(tl.int32)
    list_ptr = columns_ptr + list_start

    # What it attends to without a list: ranges counted among all whole and among all ragged blocks.
    if HAS_KEY_MASK:
        whole_listed = tl.load(whole_ptr + batch * 2)
        whole_sinks = tl.load(whole_ptr + batch * 2 + 1)
    else:
        whole_listed = tl.minimum(num_k // BLOCK_K, num_listed_k)
        whole_sinks = num_k // BLOCK_K - whole_listed
    ragged_listed = num_listed_k - whole_listed
    num_whole = whole_listed + whole_sinks
    num_ragged = num_k_blocks - num_whole
    whole_start = tl.where(is_full, part * num_whole // num_parts, whole_listed)
    whole_end = tl.where(is_full, (part + 1) * num_whole // num_parts, num_whole)
    ragged_start = tl.where(is_full, part * num_ragged // num_parts, ragged_listed)
    ragged_end = tl.where(is_full, (part + 1) * num_ragged // num_parts, num_ragged)
    ragged_entries = _count_ragged_entries(list_ptr, length, whole_listed, ragged_listed)
    whole_entries = length - ragged_entries

    first_q = q_block * BLOCK_Q + tile * TILE_Q
    first_row = batch_head.to(tl.int64) * num_q + first_q
    head_keys = batch_head.to(tl.int64) * num_k * HEAD_SIZE
    offs_d = tl.arange(0, HEAD_SIZE)
    offs_m = tl.arange(0, TILE_Q)
    offs_q = offs_m[:, None] * HEAD_SIZE + offs_d[None, :]
    mask_m = offs_m < num_q - first_q
    q = tl.load(
        q_ptr + first_row * HEAD_SIZE + offs_q, mask=mask_m[:, None], other=0.0
    )  # [TILE_Q, HEAD_SIZE]
    acc = tl.zeros([TILE_Q, HEAD_SIZE], dtype=tl.float32)
    peak = tl.full([TILE_Q], float("-inf"), dtype=tl.float32)
    total = tl.zeros([TILE_Q], dtype=tl.float32)

    # Ragged blocks. Rarely more than two, so a pipeline would only cost registers, and so would
    # more than a part of a block at a time.
    SMALL_PER_BLOCK: tl.constexpr = BLOCK_K // SMALL_K
    offs_n = tl.arange(0, SMALL_K)
    offs_kv = offs_n[:, None] * HEAD_SIZE + offs_d[None, :]
    num_steps = (ragged_entries + ragged_end - ragged_start) * SMALL_PER_BLOCK
    for step in tl.range(0, num_steps, num_stages=1):
        i = step // SMALL_PER_BLOCK
        listed = tl.load(list_ptr + whole_entries + i, mask=i < ragged_entries, other=0)
        j = i - ragged_entries + ragged_start
        unlisted = whole_listed + j + tl.where(j >= ragged_listed, whole_sinks, 0)
        block = tl.where(i < ragged_entries, listed, unlisted)
        first_k = block * BLOCK_K + step % SMALL_PER_BLOCK * SMALL_K
        exists = offs_n < num_k - first_k
        if HAS_KEY_MASK:
            kept = tl.load(key_mask_ptr + batch * num_k + first_k + offs_n, mask=exists, other=0)
            exists = exists & (kept != 0)
        # Keys that do not exist may hold anything; zeros keep NaN out of the products.
        start = head_keys + first_k.to(tl.int64) * HEAD_SIZE
        k = tl.load(k_ptr + start + offs_kv, mask=exists[:, None], other=0.0)
        v = tl.load(v_ptr + start + offs_kv, mask=exists[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # [TILE_Q, SMALL_K]
        scores = tl.where(exists[None, :], scores, float("-inf"))
        acc, peak, total = _accumulate_masked(scores, v, acc, peak, total)

    # The coarse term. Full rows leave nothing out.
    if HAS_COARSE:
        num_tiles = tl.cdiv(num_listed_k, SMALL_K)
        head_means = batch_head.to(tl.int64) * num_tiles * (SMALL_K * HEAD_SIZE)
        position = 0
        for t in tl.range(0, tl.where(is_full, 0, num_tiles)):
            bias = tl.load(bias_ptr + (batch * num_tiles + t) * SMALL_K + offs_n)
            # The row's own blocks in this tile are the next entries of its ascending list.
            offs = position + offs_n
            entries = tl.load(list_ptr + offs, mask=offs < length, other=2147483647)
            entries -= t * SMALL_K
            is_here = entries < SMALL_K
            bits = tl.where(is_here, 1 << tl.where(is_here, entries, 0).to(tl.int64), 0)
            own = tl.sum(bits, 0)
            position += tl.sum(is_here.to(tl.int32), 0)
            bias = tl.where(((own >> offs_n) & 1) != 0, float("-inf"), bias)
            start = head_means + t * (SMALL_K * HEAD_SIZE)
            k = tl.load(coarse_k_ptr + start + offs_kv)
            v = tl.load(coarse_v_ptr + start + offs_kv)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias[None, :]
            acc, peak, total = _accumulate_masked(scores, v, acc, peak, total)

    # Whole blocks. The list is read one entry ahead: read in the same step, an entry takes a stage
    # of the pipeline for itself, and keys and values are prefetched one block less.
    offs_n = tl.arange(0, BLOCK_K)
    offs_kv = offs_n[:, None] * HEAD_SIZE + offs_d[None, :]
    following = tl.load(list_ptr, mask=whole_entries > 0, other=0)
    for i in range(0, whole_entries + whole_end - whole_start):
        listed = following
        following = tl.load(list_ptr + i + 1, mask=i + 1 < whole_entries, other=0)
        j = i - whole_entries + whole_start
        unlisted = j + tl.where(j >= whole_listed, ragged_listed, 0)
        block = tl.where(i < whole_entries, listed, unlisted)
        start = head_keys + block.to(tl.int64) * (BLOCK_K * HEAD_SIZE)
        k = tl.load(k_ptr + start + offs_kv)  # [BLOCK_K, HEAD_SIZE]
        v = tl.load(v_ptr + start + offs_kv)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # [TILE_Q, BLOCK_K]
        acc, peak, total = _accumulate_finite(scores, v, acc, peak, total, scale)

    # A query without any key: zeros, and minus infinity.
    positive = tl.where(total == 0.0, 1.0, total)
    out = acc / positive[:, None]
    lse = tl.where(total == 0.0, float("-inf"), (peak + tl.math.log2(positive)) * _LN_2)
    # Nested, because without parts there are no pointers to compile the inner branch with.
    if IS_SPLIT:  # noqa: SIM102
        if is_full:
            num_full_tokens = num_q - num_listed_q * BLOCK_Q
            first_row = (part * num_batch_heads + batch_head).to(tl.int64) * num_full_tokens
            first_row += first_q - num_listed_q * BLOCK_Q
            tl.store(parts_out_ptr + first_row * HEAD_SIZE + offs_q, out, mask=mask_m[:, None])
            tl.store(parts_lse_ptr + first_row + offs_m, lse, mask=mask_m)
            return
    out = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + first_row * HEAD_SIZE + offs_q, out, mask=mask_m[:, None])
    tl.store(lse_ptr + first_row + offs_m, lse, mask=mask_m)


@triton.jit(do_not_specialize=_SIZES)
def _merge_kernel(
    parts_out_ptr,
    parts_lse_ptr,
    out_ptr,
    lse_ptr,
    num_q,
    num_full_tokens,
    num_parts,
    HEAD_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Merge the parts of some full queries: weigh each by its share of the softmax."""
    num_tiles = tl.cdiv(num_full_tokens, TILE)
    batch_head = (tl.program_id(0) // num_tiles).to(tl.int64)
    num_batch_heads = tl.num_programs(0) // num_tiles
    offs_m = tl.program_id(0) % num_tiles * TILE + tl.arange(0, TILE)
    mask_m = offs_m < num_full_tokens
    offs_d = tl.arange(0, HEAD_SIZE)
    acc = tl.zeros([TILE, HEAD_SIZE], dtype=tl.float32)
    peak = tl.full([TILE], float("-inf"), dtype=tl.float32)
    total = tl.zeros([TILE], dtype=tl.float32)
    for part in range(0, num_parts):
        rows = (part * num_batch_heads + batch_head) * num_full_tokens + offs_m
        lse = tl.load(parts_lse_ptr + rows, mask=mask_m, other=float("-inf"))
        offs = rows[:, None] * HEAD_SIZE + offs_d[None, :]  # [TILE, HEAD_SIZE]
        out = tl.load(parts_out_ptr + offs, mask=mask_m[:, None], other=0.0)
        new_peak = tl.maximum(peak, lse)
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        decay = tl.exp(peak - shift)
        weight = tl.exp(lse - shift)
        acc = acc * decay[:, None] + out * weight[:, None]
        total = total * decay + weight
        peak = new_peak
    positive = tl.where(total == 0.0, 1.0, total)
    out = (acc / positive[:, None]).to(out_ptr.dtype.element_ty)
    lse = tl.where(total == 0.0, float("-inf"), peak + tl.log(positive))
    # The full queries are the last ones.
    rows = (batch_head + 1) * num_q - num_full_tokens + offs_m
    tl.store(out_ptr + rows[:, None] * HEAD_SIZE + offs_d[None, :], out, mask=mask_m[:, None])
    tl.store(lse_ptr + rows, lse, mask=mask_m)
