# SPDX-License-Identifier: Apache-2.0
"""Block-sparse attention in plain torch: gather the listed key blocks, then dense products.

Correct on every device and dtype; the work is proportional to the blocks kept. Rows are handled in
order of their list length, so that a batch of rows wastes little on padding.

Axes: ``B`` batch, ``H`` heads, ``R`` rows (query blocks) of a batch, ``L`` list entries, ``M``
queries of a block, ``T`` keys of a block, ``D`` head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn import functional as F

from .block_map import BlockMap

_SCORES_PER_BATCH = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Scores held at once: 2 MiB in float32, a core's cache, on a CPU; 64 MiB on a GPU, where no
other size was tried."""


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

    def attend_with(b: int, h: int) -> None:
        """Fill one head of the output."""
        # Converted before the gather, which repeats blocks.
        q_head, k_head, v_head = (x[b, h].to(accumulate) for x in (q_blocks, k_blocks, v_blocks))
        every_key_exists = bool(exists[b].all())
        for rows, columns, listed in _batches(block_map, b, h):
            keep = None
            if not (every_key_exists and bool(listed.all())):
                keep = exists[b][columns] & listed[..., None]  # [R, L, T]
            attended, lse[b, h, rows] = _attend(q_head, k_head, v_head, rows, columns, keep)
            out[b, h, rows] = attended.to(q.dtype)

    _for_each_head(attend_with, batch, heads, q)
    out = out.reshape(batch, heads, -1, head_size)[:, :, :num_q]
    return out, lse.reshape(batch, heads, -1)[:, :, :num_q]


def _for_each_head(work: Callable[[int, int], None], batch: int, heads: int, like: Tensor) -> None:
    """Call `work` for every batch slot and head, on a CPU in as many threads as torch may use.

    The products are small: threads that each take a head need no barriers, which torch's own
    threads spend much of their time in. With autograd everything runs in the caller's thread.
    """
    slots = [(b, h) for b in range(batch) for h in range(heads)]
    num_threads = min(torch.get_num_threads(), len(slots))
    if like.device.type != "cpu" or num_threads == 1 or torch.is_grad_enabled():
        for b, h in slots:
            work(b, h)
        return
    is_inference = torch.is_inference_mode_enabled()

    def work_alone(slot: tuple[int, int]) -> None:
        # These settings belong to a thread; a new one has the defaults.
        with torch.inference_mode(is_inference), torch.no_grad():
            work(*slot)

    total = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            num_threads, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            list(pool.map(work_alone, slots))
    finally:
        # Threads that are born later take over the number that was set last.
        torch.set_num_threads(total)


def _attend(
    q_blocks: Tensor,  # [NQ, M, D]
    k_blocks: Tensor,  # [NK, T, D]
    v_blocks: Tensor,  # [NK, T, D]
    rows: Tensor,  # [R]
    columns: Tensor,  # [R, L]
    keep: Tensor | None,  # [R, L, T] bool
) -> tuple[Tensor, Tensor]:
    """Attend with some query blocks; return output ``[R, M, D]`` and log-sum-exp ``[R, M]``."""
    if columns.shape[1] == 0:
        out = q_blocks.new_zeros(len(rows), *q_blocks.shape[1:])
        return out, out.new_full(out.shape[:2], float("-inf"))
    k = k_blocks[columns].flatten(1, 2)  # [R, L * T, D]
    v = v_blocks[columns].flatten(1, 2)
    scores = torch.bmm(q_blocks[rows] * q_blocks.shape[-1] ** -0.5, k.transpose(1, 2))
    if keep is not None:
        scores.masked_fill_(~keep.flatten(1)[:, None], float("-inf"))
    # The result does not depend on the peak, so autograd need not follow it.
    peak = scores.detach().amax(-1, keepdim=True)
    # A query without any key has a peak of minus infinity; zero keeps its weights at zero instead
    # of NaN.
    peak = peak.masked_fill(peak.isneginf(), 0.0)
    # In place, because fresh memory costs a CPU more than the arithmetic; autograd needs what an
    # exponential in place would overwrite.
    shifted = scores.sub_(peak)
    weights = shifted.exp() if torch.is_grad_enabled() else shifted.exp_()
    total = weights.sum(-1, keepdim=True)
    out = torch.bmm(weights, v) / total.clamp_min(torch.finfo(total.dtype).tiny)
    return out, (peak + total.log()).squeeze(-1)


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


def _batches(
    block_map: BlockMap, batch_slot: int, head: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield all rows of a head in batches of at most `_SCORES_PER_BATCH` scores, one row at least.

    Yields:
        Rows ``[R]``, their key blocks ``[R, L]`` padded to one length, and which of those are real
        ``[R, L]``.
    """
    device = block_map.columns.device
    all_blocks = torch.arange(block_map.num_k_blocks, device=device)
    sinks = all_blocks[block_map.num_listed_k_blocks :]
    limit = _SCORES_PER_BATCH.get(device.type, _SCORES_PER_BATCH["cuda"])
    scores_per_entry = block_map.block_q * block_map.block_k
    first_row = (batch_slot * block_map.num_heads + head) * block_map.num_listed_q_blocks
    lengths, order = (block_map.counts[batch_slot, head] + len(sinks)).sort(stable=True)
    ascending = lengths.tolist()
    start = 0
    for end in range(1, len(ascending) + 1):
        # Lengths ascend, so the next row's list is the longest of a batch that would include it.
        is_last = end == len(ascending)
        if is_last or (end + 1 - start) * ascending[end] * scores_per_entry > limit:
            rows = order[start:end]
            yield rows, *_pad_lists(block_map, first_row, rows, sinks)
            start = end
    for row in range(block_map.num_listed_q_blocks, block_map.num_q_blocks):
        columns = all_blocks[None]
        yield (
            torch.tensor([row], device=device),
            columns,
            torch.ones_like(columns, dtype=torch.bool),
        )


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
