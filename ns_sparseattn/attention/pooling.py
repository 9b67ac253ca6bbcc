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
    accumulate = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    batch, heads, num_tokens, head_size = tokens.shape
    if mask is None:
        mask = torch.ones(batch, num_tokens, dtype=torch.bool, device=tokens.device)
    else:
        tokens = tokens.masked_fill(~mask[:, None, :, None], 0.0)
    extra = num_blocks * block - num_tokens
    counts = F.pad(mask, (0, extra)).reshape(batch, num_blocks, block).sum(-1)
    padded = F.pad(tokens, (0, 0, 0, extra)).reshape(batch, heads, num_blocks, block, head_size)
    means = padded.sum(3, dtype=accumulate) / counts.clamp_min(1)[:, None, :, None]
    return means, counts
