# SPDX-License-Identifier: Apache-2.0
"""Blocks reduced to one token each, for block selection and for the coarse term.

Axes: ``B`` batch, ``H`` heads, ``N`` tokens, ``D`` head size, ``C`` blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .block_map import BlockMap
from .threads import map_in_threads

_ELEMENTS_PER_PIECE = 1 << 18
"""Numbers that a CPU thread casts at once: 1 MiB in float32, a core's cache."""


@dataclass(frozen=True, kw_only=True)
class CoarseBlocks:
    """The listed key blocks of an operation, each as one key and one value.

    A query gives a block that its row leaves out the weight that the block would have if all its
    keys were their mean: the logit is ``q . key / sqrt(D) + log_count``. For a block of equal keys
    that is exact.
    """

    keys: Tensor  # [B, H, C, D] in the accumulation dtype
    """Mean of each block's keys."""
    values: Tensor  # [B, H, C, D] in the accumulation dtype
    """Mean of each block's values."""
    log_counts: Tensor  # [B, C] in the accumulation dtype
    """Natural logarithm of the number of each block's keys, minus infinity for none."""

    @classmethod
    def of(cls, k: Tensor, v: Tensor, block_map: BlockMap, key_mask: Tensor | None) -> CoarseBlocks:
        """Pool ``k`` and ``v`` ``[B, H, Nk, D]`` into the blocks that the map's lists may name."""
        num_listed = block_map.num_listed_k_blocks
        means = []
        for tokens in (k, v):
            mean, counts = block_means(tokens, block_map.num_k_blocks, block_map.block_k, key_mask)
            means.append(mean[:, :, :num_listed])
        return cls(
            keys=means[0],
            values=means[1],
            log_counts=counts[:, :num_listed].to(means[0].dtype).log(),
        )


def block_means(
    tokens: Tensor,  # [B, H, N, D]
    num_blocks: int,
    block: int,
    mask: Tensor | None,  # [B, N] bool
) -> tuple[Tensor, Tensor]:
    """Average each block's existing tokens.

    Returns:
        Means ``[B, H, C, D]`` in float32 (float64 for float64), zero for a block without tokens,
        and the number of tokens ``[B, C]``.
    """
    batch, _, num_tokens, _ = tokens.shape
    sums = _block_sums(tokens, num_blocks, block)  # [B, H, C, D]
    starts = torch.arange(0, num_blocks * block, block, device=tokens.device)
    counts = (num_tokens - starts).clamp(0, block).expand(batch, -1)
    if mask is not None:
        sizes = counts
        padded = F.pad(mask, (0, num_blocks * block - num_tokens))
        counts = padded.reshape(batch, num_blocks, block).sum(-1)
        _correct_sums(sums, tokens, block, mask, counts < sizes)
    return sums / counts.clamp_min(1)[:, None, :, None], counts


def _block_sums(tokens: Tensor, num_blocks: int, block: int) -> Tensor:
    """Sum the tokens of each block in float32 (float64 for float64), ``[B, H, C, D]``."""
    accumulate = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    batch, heads, num_tokens, head_size = tokens.shape
    sums = torch.zeros(batch, heads, num_blocks, head_size, dtype=accumulate, device=tokens.device)
    num_whole = num_tokens // block
    whole = tokens[:, :, : num_whole * block].unflatten(2, (num_whole, block))
    if tokens.device.type == "cpu":
        # In pieces, because casting all at once would take fresh memory, which is slow.
        step = max(_ELEMENTS_PER_PIECE // (block * head_size), 1)

        def sum_piece(piece: tuple[int, int, slice]) -> None:
            sums[piece] = whole[piece].to(accumulate).sum(1)

        pieces = [
            (b, h, slice(start, min(start + step, num_whole)))
            for b in range(batch)
            for h in range(heads)
            for start in range(0, num_whole, step)
        ]
        map_in_threads(sum_piece, pieces, tokens.device)
    else:
        sums[:, :, :num_whole] = whole.sum(3, dtype=accumulate)
    if num_whole < num_blocks:
        rest = tokens[:, :, num_whole * block :]
        sums[:, :, num_whole] = rest.sum(2, dtype=accumulate)
    return sums


def _correct_sums(
    sums: Tensor,  # [B, H, C, D]
    tokens: Tensor,  # [B, H, N, D]
    block: int,
    mask: Tensor,  # [B, N] bool
    is_partial: Tensor,  # [B, C] bool
) -> None:
    """Sum the blocks that lack tokens again, without those; usually few."""
    batch_ids, block_ids = is_partial.nonzero(as_tuple=True)
    places = block_ids[:, None] * block + torch.arange(block, device=tokens.device)  # [K, T]
    exists = places < tokens.shape[2]
    places = places.clamp_max(tokens.shape[2] - 1)
    exists &= mask[batch_ids[:, None], places]
    held = tokens[batch_ids[:, None], :, places]  # [K, T, H, D]
    # Not a product with zero: what does not exist may be NaN.
    held = held.masked_fill(~exists[:, :, None, None], 0.0)
    sums[batch_ids, :, block_ids] = held.sum(1, dtype=sums.dtype)
