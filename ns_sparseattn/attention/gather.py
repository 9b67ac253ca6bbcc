# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention in plain torch: gather the listed key blocks, then dense products.

Correct on every device and dtype; the work is proportional to the blocks kept. Rows are handled in
order of their list length, so that a batch of rows wastes little on padding.

Axes: ``B`` batch, ``H`` heads, ``R`` rows (query blocks) of a batch, ``L`` list entries, ``M``
queries of a block, ``T`` keys of a block, ``D`` head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .block_map import BlockMap

_SCORES_PER_BATCH = 1 << 23
"""Scores held at once: 32 MiB in float32, which stays near the caches of a CPU and fills a GPU."""


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Return why this backend cannot run on such tensors; it always can."""
    return None


def run(
    q: Tensor,  # [B, H, Nq, D]
    k: Tensor,  # [B, H, Nk, D]
    v: Tensor,  # [B, H, Nk, D]
    block_map: BlockMap,
    key_mask: Tensor | None,  # [B, Nk] bool
) -> tuple[Tensor, Tensor]:
    """Compute the operation as `ns_sparseattn.attention.reference.run` defines it.

    Returns:
        Output ``[B, H, Nq, D]`` in q's dtype and log-sum-exp ``[B, H, Nq]`` in float32 (float64 for
        float64).
    """
    batch, heads, num_q, head_size = q.shape
    num_k = k.shape[2]
    block_q, block_k = block_map.block_q, block_map.block_k
    accumulate = torch.float64 if q.dtype == torch.float64 else torch.float32
    q_blocks = _to_blocks(q, block_map.num_q_blocks, block_q)  # [B, H, NQ, M, D]
    k_blocks = _to_blocks(k, block_map.num_k_blocks, block_k)  # [B, H, NK, T, D]
    v_blocks = _to_blocks(v, block_map.num_k_blocks, block_k)
    exists = _key_exists(batch, num_k, block_map, key_mask, q.device)  # [B, NK, T]

    out = torch.full(
        (batch, heads, block_map.num_q_blocks, block_q, head_size),
        float("nan"),
        dtype=q.dtype,
        device=q.device,
    )
    lse = torch.full(out.shape[:4], float("nan"), dtype=accumulate, device=q.device)
    all_blocks = torch.arange(block_map.num_k_blocks, device=q.device)
    sinks = all_blocks[block_map.num_listed_k_blocks :]
    num_listed = block_map.num_listed_q_blocks
    counts = block_map.counts
    for b in range(batch):
        every_key_exists = bool(exists[b].all())
        for h in range(heads):
            head = (q_blocks[b, h], k_blocks[b, h], v_blocks[b, h])
            first_row = (b * heads + h) * num_listed
            order = torch.argsort(counts[b, h], stable=True)
            for rows in _batches_of_rows(order, counts[b, h], len(sinks), block_q * block_k):
                columns, listed = _pad_lists(block_map, first_row, rows, sinks)
                keep = exists[b][columns] & listed[..., None]  # [R, L, T]
                bias = None if every_key_exists and bool(listed.all()) else keep
                out[b, h, rows], lse[b, h, rows] = _attend(*head, rows, columns, bias, accumulate)
            for row in range(num_listed, block_map.num_q_blocks):
                rows = torch.tensor([row], device=q.device)
                keep = None if every_key_exists else exists[b][None]
                out[b, h, rows], lse[b, h, rows] = _attend(
                    *head, rows, all_blocks[None], keep, accumulate
                )
    out = out.reshape(batch, heads, -1, head_size)[:, :, :num_q]
    return out, lse.reshape(batch, heads, -1)[:, :, :num_q]


def _attend(
    q_blocks: Tensor,  # [NQ, M, D]
    k_blocks: Tensor,  # [NK, T, D]
    v_blocks: Tensor,  # [NK, T, D]
    rows: Tensor,  # [R]
    columns: Tensor,  # [R, L]
    keep: Tensor | None,  # [R, L, T] bool
    accumulate: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Attend with some query blocks; return output ``[R, M, D]`` and log-sum-exp ``[R, M]``."""
    head_size = q_blocks.shape[-1]
    if columns.shape[1] == 0:
        out = q_blocks.new_zeros(len(rows), *q_blocks.shape[1:])
        return out, out.new_full(out.shape[:2], float("-inf"), dtype=accumulate)
    q = q_blocks[rows].to(accumulate)
    k = k_blocks[columns].flatten(1, 2).to(accumulate)  # [R, L * T, D]
    v = v_blocks[columns].flatten(1, 2).to(accumulate)
    scores = torch.bmm(q * head_size**-0.5, k.transpose(1, 2))  # [R, M, L * T]
    if keep is not None:
        scores = scores.masked_fill(~keep.flatten(1)[:, None], float("-inf"))
    peak = scores.amax(-1, keepdim=True)
    # A query without any key has a peak of minus infinity; zero keeps its weights at zero instead
    # of NaN.
    peak = peak.masked_fill(peak.isneginf(), 0.0)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True)
    out = torch.bmm(weights, v) / total.clamp_min(torch.finfo(accumulate).tiny)
    return out.to(q_blocks.dtype), (peak + total.log()).squeeze(-1)


def _to_blocks(tokens: Tensor, num_blocks: int, block: int) -> Tensor:
    """Pad ``[B, H, N, D]`` with zeros to whole blocks: ``[B, H, num_blocks, block, D]``."""
    padded = F.pad(tokens, (0, 0, 0, num_blocks * block - tokens.shape[2]))
    return padded.reshape(*tokens.shape[:2], num_blocks, block, tokens.shape[3])


def _key_exists(
    batch: int, num_k: int, block_map: BlockMap, key_mask: Tensor | None, device: torch.device
) -> Tensor:
    """Return ``[B, NK, T]`` booleans: false for masked keys and the last block's padding."""
    if key_mask is None:
        key_mask = torch.ones(batch, num_k, dtype=torch.bool, device=device)
    padded = F.pad(key_mask, (0, block_map.num_k_blocks * block_map.block_k - num_k))
    return padded.reshape(batch, block_map.num_k_blocks, block_map.block_k)


def _batches_of_rows(
    order: Tensor,  # [R] rows by ascending list length
    counts: Tensor,  # [R]
    num_sinks: int,
    scores_per_entry: int,
) -> list[Tensor]:
    """Split rows into batches of at most `_SCORES_PER_BATCH` scores, padding included."""
    lengths = (counts[order] + num_sinks).tolist()
    batches, start = [], 0
    for end in range(1, len(lengths) + 1):
        # Lengths ascend, so the next row's list is the longest of a batch that would include it.
        is_last = end == len(lengths)
        if is_last or (end + 1 - start) * lengths[end] * scores_per_entry > _SCORES_PER_BATCH:
            batches.append(order[start:end])
            start = end
    return batches


def _pad_lists(
    block_map: BlockMap,
    first_row: int,
    rows: Tensor,  # [R]
    sinks: Tensor,  # [S]
) -> tuple[Tensor, Tensor]:
    """Return the rows' key blocks, sinks last, padded to one length: ids ``[R, L]``, is real."""
    starts = block_map.row_offsets[first_row + rows]
    lengths = block_map.row_offsets[first_row + rows + 1] - starts
    slots = torch.arange(int(lengths.max()), device=rows.device)
    is_listed = slots < lengths[:, None]  # [R, L]
    positions = torch.where(is_listed, starts[:, None] + slots, 0)
    if block_map.columns.numel():
        columns = torch.where(is_listed, block_map.columns[positions].long(), 0)
    else:
        columns = positions
    columns = torch.cat([columns, sinks.expand(len(rows), -1)], dim=1)
    is_listed = torch.cat([is_listed, is_listed.new_ones(len(rows), len(sinks))], dim=1)
    return columns, is_listed
