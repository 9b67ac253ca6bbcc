# SPDX-License-Identifier: Apache-2.0
"""Choose key blocks without training: softmax over pooled queries and keys.

Source: Block-Sparse Global Attention for Efficient Multi-View Geometry Transformers (arXiv
2509.07120). Three differences from its published code. The mass asked for is reached, not missed by
a block. Special tokens lie in blocks of their own, which no selection can drop (see
`ns_sparseattn.attention.layout`). A ragged block is weighed by the number of its keys.

Axes: ``B`` batch, ``H`` heads, ``N`` tokens, ``D`` head size, ``R`` query blocks, ``C`` key blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import check_tensor
from .block_map import BlockMap
from .pooling import block_means

_SCORES_PER_CHUNK = 1 << 22
"""Pooled scores held at once (16 MiB in float32): memory stays linear in the blocks kept."""


def select_blocks(
    q: Tensor,  # [B, H, N, D]
    k: Tensor,  # [B, H, N, D]
    *,
    mass: float | None = None,
    min_density: float = 0.0,
    max_density: float = 1.0,
    block_q: int = 128,
    block_k: int = 64,
    num_full_q_blocks: int = 0,
    num_sink_k_blocks: int = 0,
    key_mask: Tensor | None = None,  # [B, N] bool
) -> BlockMap:
    """Pick, per head and query block, the key blocks with the largest pooled attention.

    The share of a key block is the softmax, over all listed key blocks, of the dot product of the
    mean query and the mean key, scaled by ``1 / sqrt(D)``, each weighed by the number of its keys.
    The most likely blocks are kept until their shares reach `mass`, within the density bounds; at
    least one block that has keys is kept.

    Args:
        q: ``[B, H, N, D]``, after q/k norm and positional encoding.
        k: ``[B, H, N, D]``, likewise.
        mass: Share of the pooled softmax to reach, in (0, 1]; ``None`` keeps `max_density`.
        min_density: Share of the listed key blocks kept at least.
        max_density: Share of the listed key blocks kept at most.
        block_q: Tokens of a query block.
        block_k: Tokens of a key block.
        num_full_q_blocks: Trailing query blocks that attend to everything and are not selected for.
        num_sink_k_blocks: Trailing key blocks that everyone attends to and that take no part in the
        selection.
        key_mask: True where a key exists; keys that do not are left out of the means.

    Returns:
        The map, on q's device. Equal scores may be chosen among in any order, but the same way
        every time.

    Raises:
        ValueError: If a share is out of range, or scores are not finite.

    Example:
        >>> import torch
        >>> q = torch.randn(1, 2, 512, 64)
        >>> select_blocks(q, q, max_density=0.25).counts.unique().tolist()
        [2]
    """
    check_tensor("q", q, ("B", "H", "N", "D"), is_floating=True)
    check_tensor("k", k, (q.shape[0], q.shape[1], "N", q.shape[3]), is_floating=True)
    if mass is not None and not 0.0 < mass <= 1.0:
        raise ValueError(f"`mass` must be in (0, 1], got {mass:g}.")
    if not 0.0 <= min_density <= max_density <= 1.0:
        raise ValueError(
            "Density bounds must satisfy 0 <= min <= max <= 1, "
            f"got {min_density:g} and {max_density:g}."
        )
    batch, heads, num_q, head_size = q.shape
    num_q_blocks, num_k_blocks = math.ceil(num_q / block_q), math.ceil(k.shape[2] / block_k)
    num_rows, num_columns = num_q_blocks - num_full_q_blocks, num_k_blocks - num_sink_k_blocks
    q_means, _ = block_means(q, num_q_blocks, block_q, None)
    k_means, k_counts = block_means(k, num_k_blocks, block_k, key_mask)
    q_means = q_means[:, :, :num_rows] * head_size**-0.5
    k_means, k_counts = k_means[:, :, :num_columns], k_counts[:, :num_columns]

    least = min(max(math.ceil(min_density * num_columns), 1), num_columns)
    most = max(math.ceil(max_density * num_columns), least)
    # Empty blocks get minus infinity: never selected before a block that has keys.
    weights = k_counts.to(torch.float32).log()[:, None, None]  # [B, 1, 1, C]
    num_present = (k_counts > 0).sum(-1)  # [B]
    rows_per_chunk = max(_SCORES_PER_CHUNK // max(num_columns, 1), 1)
    counts_of_chunks: list[Tensor] = []
    columns_of_chunks: list[Tensor] = []
    for b in range(batch):
        present = int(num_present[b])
        for h in range(heads):
            for start in range(0, num_rows, rows_per_chunk):
                rows = q_means[b, h, start : start + rows_per_chunk]
                scores = _float32_product(rows, k_means[b, h]) + weights[b, 0]  # [R, C]
                keep = _keep(scores, mass, min(least, present), min(most, present))
                counts_of_chunks.append(keep.sum(-1))
                columns_of_chunks.append(keep.nonzero()[:, 1].to(torch.int32))
    row_offsets = torch.zeros(batch * heads * num_rows + 1, dtype=torch.int64, device=q.device)
    columns = torch.zeros(0, dtype=torch.int32, device=q.device)
    if counts_of_chunks:
        torch.cumsum(torch.cat(counts_of_chunks), 0, out=row_offsets[1:])
        columns = torch.cat(columns_of_chunks)
    return BlockMap(
        num_batch=batch,
        num_heads=heads,
        num_q_blocks=num_q_blocks,
        num_k_blocks=num_k_blocks,
        block_q=block_q,
        block_k=block_k,
        row_offsets=row_offsets,
        columns=columns,
        num_full_q_blocks=num_full_q_blocks,
        num_sink_k_blocks=num_sink_k_blocks,
    )


def _float32_product(rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``rows @ columns^T`` in float32 whatever autocast says: 8 bits would tie blocks."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ columns.transpose(0, 1)


def _keep(scores: Tensor, mass: float | None, least: int, most: int) -> Tensor:
    """Return ``[R, C]``: the best `least` to `most` blocks of each row that reach `mass`."""
    if bool(torch.isnan(scores).any()):
        raise ValueError("`q` and `k` must be finite: the pooled attention scores contain NaN.")
    if mass is None:
        kept = torch.full((scores.shape[0],), most, device=scores.device)
        order = scores.topk(most, dim=-1).indices
    else:
        share, order = torch.softmax(scores, dim=-1).sort(dim=-1, descending=True, stable=True)
        # Number of leading blocks whose sum stays short of the mass, plus the one that reaches it.
        kept = ((share.cumsum(-1) < mass).sum(-1) + 1).clamp(least, most)
        order = order[:, :most]
    is_kept = torch.arange(order.shape[1], device=scores.device) < kept[:, None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, is_kept)
