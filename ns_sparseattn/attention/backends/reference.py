# SPDX-License-Identifier: Apache-2.0
"""The slow truth: block-sparse attention written as its formula, in float32 or float64.

Axes: ``B`` batch, ``H`` heads, ``Nq``/``Nk`` tokens, ``C`` listed key blocks, ``D`` head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import AttentionInputs


def why_not(inputs: AttentionInputs) -> str | None:
    """Return why this backend cannot run; it always can."""
    return None


def run(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """Compute ``softmax(q k^T / sqrt(D)) v`` over the keys that the map and the key mask keep.

    With the coarse term, the mean key of each block that a row leaves out is one key more, its
    logit raised by the logarithm of the block's size. One query block at a time, so that memory
    stays linear in tokens.

    Returns:
        Output ``[B, H, Nq, D]`` in q's dtype and log-sum-exp ``[B, H, Nq]`` in the accumulation
        dtype. A query without any key gives zeros and minus infinity.
    """
    q, block_map, coarse = inputs.q, inputs.block_map, inputs.coarse
    num_q, num_k = q.shape[2], inputs.k.shape[2]
    keys, values = inputs.k.to(inputs.accumulate), inputs.v.to(inputs.accumulate)
    mask = block_map.to_mask()
    out = torch.full(q.shape, float("nan"), dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:3], float("nan"), dtype=inputs.accumulate, device=q.device)
    for block in range(block_map.num_q_blocks):
        rows = slice(block * block_map.block_q, min((block + 1) * block_map.block_q, num_q))
        queries = q[:, :, rows].to(inputs.accumulate) * inputs.scale
        keep = mask[:, :, block].repeat_interleave(block_map.block_k, dim=-1)[
            ..., :num_k
        ]  # [B, H, Nk]
        if inputs.key_mask is not None:
            keep = keep & inputs.key_mask[:, None]
        scores = (queries @ keys.transpose(-1, -2)).masked_fill(~keep[:, :, None], float("-inf"))
        row_values = values
        if coarse is not None:
            is_listed = mask[:, :, block, : block_map.num_listed_k_blocks]  # [B, H, C]
            logits = queries @ coarse.keys.transpose(-1, -2) + coarse.log_counts[:, None, None]
            logits = logits.masked_fill(is_listed[:, :, None], float("-inf"))
            scores = torch.cat([scores, logits], dim=-1)
            row_values = torch.cat([values, coarse.values], dim=2)
        row_lse = torch.logsumexp(scores, dim=-1)  # [B, H, rows]
        # Minus infinity minus minus infinity is NaN: a row without keys is defined to give zeros.
        weights = torch.exp(scores - row_lse.masked_fill(row_lse.isneginf(), 0.0)[..., None])
        out[:, :, rows] = (weights @ row_values).to(q.dtype)
        lse[:, :, rows] = row_lse
    return out, lse
