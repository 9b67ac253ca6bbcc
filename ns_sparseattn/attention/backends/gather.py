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
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..block_map import BlockMap
from ..pooling import CoarseBlocks
from .inputs import AttentionInputs

_SCORES_PER_BATCH = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Scores held at once: 2 MiB in float32, a core's cache, on a CPU; 64 MiB on a GPU, where no
other size was tried."""


def why_not(inputs: AttentionInputs) -> str | None:
    """Return why this backend cannot run; it always can."""
    return None


def run(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Compute the operation as `ns_sparseattn.attention.backends.reference.run` defines it."""
    q, block_map, accumulate = inputs.q, inputs.block_map, inputs.accumulate
    batch, heads, num_q, head_size = q.shape
    block_q, block_k = block_map.block_q, block_map.block_k
    q_blocks = _to_blocks(q, block_map.num_q_blocks, block_q)  # [B, H, NQ, M, D]
    k_blocks = _to_blocks(inputs.k, block_map.num_k_blocks, block_k)  # [B, H, NK, T, D]
    v_blocks = _to_blocks(inputs.v, block_map.num_k_blocks, block_k)
    exists = _key_exists(inputs)  # [B, NK, T]

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
            coarse = None
            if inputs.coarse is not None:
                coarse = _left_out(inputs.coarse, b, h, columns, listed)
            attended, lse[b, h, rows] = _attend(
                q_head[rows],
                k_head[columns].flatten(1, 2),
                v_head[columns].flatten(1, 2),
                keep,
                coarse,
            )
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


@dataclass(frozen=True, kw_only=True)
class _LeftOut:
    """The coarse term of a batch of rows."""

    keys: Tensor  # [C, D]
    values: Tensor  # [C, D]
    bias: Tensor  # [R, C]
    """Added to the logits: log of the block's size, minus infinity for blocks that a row lists."""


def _left_out(
    coarse: CoarseBlocks, batch_slot: int, head: int, columns: Tensor, listed: Tensor
) -> _LeftOut:
    """Return what the blocks that are not in ``columns [R, L]`` contribute to each row."""
    num_listed = coarse.keys.shape[2]
    # Entries beyond the lists, sinks and padding, go to an extra column that is cut off.
    target = torch.where(listed & (columns < num_listed), columns, num_listed)
    bias = F.pad(coarse.log_counts[batch_slot], (0, 1)).repeat(len(columns), 1)
    bias.scatter_(1, target, float("-inf"))
    return _LeftOut(
        keys=coarse.keys[batch_slot, head],
        values=coarse.values[batch_slot, head],
        bias=bias[:, :num_listed],
    )


def _attend(
    q: Tensor,  # [R, M, D]
    k: Tensor,  # [R, K, D]
    v: Tensor,  # [R, K, D]
    keep: Tensor | None,  # [R, L, T] bool, L * T = K
    coarse: _LeftOut | None,
) -> tuple[Tensor, Tensor]:
    """Attend with some query blocks; return output ``[R, M, D]`` and log-sum-exp ``[R, M]``."""
    num_rows, num_keys = k.shape[:2]
    if coarse is not None:
        k = torch.cat([k, coarse.keys.expand(num_rows, -1, -1)], dim=1)
        v = torch.cat([v, coarse.values.expand(num_rows, -1, -1)], dim=1)
    if k.shape[1] == 0:
        out = torch.zeros_like(q)
        return out, out.new_full(out.shape[:2], float("-inf"))
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
    if keep is not None:
        scores[:, :, :num_keys].masked_fill_(~keep.flatten(1)[:, None], float("-inf"))
    if coarse is not None:
        scores[:, :, num_keys:] += coarse.bias[:, None]
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


def _key_exists(inputs: AttentionInputs) -> Tensor:
    """Return ``[B, NK, T]`` booleans: false for masked keys and the last block's padding."""
    block_map, key_mask = inputs.block_map, inputs.key_mask
    batch, num_k = inputs.k.shape[0], inputs.k.shape[2]
    if key_mask is None:
        key_mask = torch.ones(batch, num_k, dtype=torch.bool, device=inputs.k.device)
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
