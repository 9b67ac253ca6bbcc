# SPDX-License-Identifier: Apache-2.0
"""The slow truth: block-sparse attention written as its formula, in float32 or float64.

Axes: ``B`` batch, ``H`` heads, ``Nq``/``Nk`` tokens, ``D`` head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .block_map import BlockMap


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
    """Compute ``softmax(q k^T / sqrt(D)) v`` over the keys that the map and the key mask keep.

    One query block at a time, so that memory stays linear in tokens.

    Returns:
        Output ``[B, H, Nq, D]`` in q's dtype and log-sum-exp ``[B, H, Nq]`` in the accumulation
        dtype (float64 for float64 inputs, else float32). A query without any key gives zeros and
        minus infinity.
    """
    accumulate = torch.float64 if q.dtype == torch.float64 else torch.float32
    num_q, num_k = q.shape[2], k.shape[2]
    mask = block_map.to_mask()
    out = torch.full(q.shape, float("nan"), dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:3], float("nan"), dtype=accumulate, device=q.device)
    for block in range(block_map.num_q_blocks):
        rows = slice(block * block_map.block_q, min((block + 1) * block_map.block_q, num_q))
        keep = mask[:, :, block].repeat_interleave(block_map.block_k, dim=-1)[
            ..., :num_k
        ]  # [B, H, Nk]
        if key_mask is not None:
            keep = keep & key_mask[:, None]
        scores = (
            q[:, :, rows].to(accumulate) @ k.to(accumulate).transpose(-1, -2) * q.shape[-1] ** -0.5
        )
        scores = scores.masked_fill(~keep[:, :, None], float("-inf"))
        row_lse = torch.logsumexp(scores, dim=-1)  # [B, H, rows]
        # Minus infinity minus minus infinity is NaN: a row without keys is defined to give zeros.
        weights = torch.exp(scores - row_lse.masked_fill(row_lse.isneginf(), 0.0)[..., None])
        out[:, :, rows] = (weights @ v.to(accumulate)).to(q.dtype)
        lse[:, :, rows] = row_lse
    return out, lse
