# SPDX-License-Identifier: Apache-2.0
"""Attention over two sets of keys from the attention over each, through their log-sum-exps.

With it a kernel that knows nothing of the coarse term gets it all the same.

Axes: ``B`` batch, ``H`` heads, ``Nq`` queries, ``C`` listed key blocks, ``D`` head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import AttentionInputs

_SCORES_AT_ONCE = 1 << 24
"""Logits of the coarse term held at once, 64 MiB in float32."""


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the attention over two disjoint sets of keys.

    Outputs are ``[..., D]``, log-sum-exps ``[...]``; minus infinity stands for no key at all.

    Returns:
        Output in `out_a`'s dtype and log-sum-exp.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    # Minus infinity minus minus infinity is NaN; a query without any key is defined to give zeros.
    base = lse.masked_fill(lse.isneginf(), 0.0)
    weight_a, weight_b = ((x - base).exp()[..., None] for x in (lse_a, lse_b))
    return (weight_a * out_a + weight_b * out_b).to(out_a.dtype), lse


def add_coarse(inputs: AttentionInputs, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Add the coarse term of `inputs`, if it has one, to the attention over its listed blocks."""
    if inputs.coarse is None:
        return out, lse
    block_map, coarse = inputs.block_map, inputs.coarse
    batch, heads, num_q, _ = inputs.q.shape
    num_blocks = coarse.keys.shape[2]
    is_listed = block_map.to_mask()[..., :num_blocks]  # [B, H, NQ, C]
    merged, merged_lse = torch.empty_like(out), torch.empty_like(lse)
    step = max(_SCORES_AT_ONCE // (batch * heads * block_map.block_q * max(num_blocks, 1)), 1)
    for first in range(0, block_map.num_q_blocks, step):
        rows = slice(first * block_map.block_q, min((first + step) * block_map.block_q, num_q))
        queries = inputs.q[:, :, rows].to(inputs.accumulate) * inputs.scale
        logits = queries @ coarse.keys.transpose(-1, -2) + coarse.log_counts[:, None, None]
        listed = is_listed[:, :, first : first + step].repeat_interleave(block_map.block_q, 2)
        logits = logits.masked_fill(listed[:, :, : queries.shape[2]], float("-inf"))
        coarse_lse = logits.logsumexp(-1)
        weights = (logits - coarse_lse.masked_fill(coarse_lse.isneginf(), 0.0)[..., None]).exp()
        merged[:, :, rows], merged_lse[:, :, rows] = merge(
            out[:, :, rows], lse[:, :, rows], weights @ coarse.values, coarse_lse
        )
    return merged, merged_lse
