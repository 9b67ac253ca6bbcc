# SPDX-License-Identifier: Apache-2.0
"""The published method's own block layout and selection, kept for comparison with its numbers.

Source: Block-Sparse Global Attention for Efficient Multi-View Geometry Transformers (arXiv
2509.07120) and what its public code does. Keys are all patches, then all special tokens, cut into
blocks of 64 from the start; queries are all patches, in blocks of 128. Special queries attend to
everything. A block is chosen by the softmax of pooled patch queries and pooled patch keys.

Two defects of that code belong to the layout and are reproduced here:

- The last patch block is filled up with special tokens, those of the first frames, so also with
  camera and registers of the reference frame. It is chosen by its patches alone, so these special
  tokens can be dropped. With 518 x 392 photos that is all special tokens of 2 frames, 8 tokens of
  10 frames, 40 of 50, none of a multiple of 16.
- The mass asked for is missed by a block: the one that would reach it is left out.

`ns_sparseattn.attention.layout` and `ns_sparseattn.attention.selection` have neither and are the
default. One thing of the published code is not reproduced: under autocast its pooled scores are
rounded to 8 bits, here they are float32 at least.

Axes: ``B`` batch, ``H`` heads, ``N`` all tokens, ``P`` patches, ``S`` special tokens, ``D`` head
size, ``R`` query blocks, ``C`` key blocks that hold patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .block_map import BlockMap
from .hilbert import hilbert_order
from .layout import BLOCK_K, Q_PER_K, TokenLayout
from .plan import PaperPolicy, Pooling

_SCORES_PER_CHUNK = 1 << 22
"""Pooled scores held at once (16 MiB in float32): the pooled map is never there as a whole."""
_CDF_SLACK = 1e-5
"""Cumulated shares may exceed the threshold by this much (the published code's constant)."""


@dataclass(frozen=True, kw_only=True)
class PaperOrder:
    """The published order of tokens: patches frame by frame, then special tokens likewise.

    Masked patches, which nobody attends to, follow at the end.
    """

    gather_index: Tensor  # [N] int64
    """Token that each place holds."""
    scatter_index: Tensor  # [N] int64
    """Place of each token."""
    num_patches: int
    """Patches of all frames that are not masked; they come first."""
    num_keys: int
    """Patches and special tokens; tokens beyond are no keys."""

    @classmethod
    def of(
        cls,
        tokens: TokenLayout,
        device: torch.device,
        *,
        hilbert: bool = False,
        key_mask: Tensor | None = None,  # [N] bool
    ) -> PaperOrder:
        """Build the order of a layout on a device.

        Args:
            tokens: How the model's tokens lie.
            device: Where the indices will be.
            hilbert: Patches of each frame along a Hilbert curve instead of row by row.
            key_mask: False where a patch is masked.
        """
        patches = tokens.patch_ids(device)
        if hilbert:
            curve = hilbert_order(tokens.grid_height, tokens.grid_width)
            patches = patches[:, torch.tensor(curve, device=device)]
        patches = patches.flatten()
        is_key = torch.ones_like(patches, dtype=torch.bool)
        if key_mask is not None:
            is_key = key_mask.to(device)[patches]
        kept = patches[is_key]
        gather_index = torch.cat([kept, tokens.special_ids(device), patches[~is_key]])
        return cls(
            gather_index=gather_index,
            scatter_index=torch.argsort(gather_index),
            num_patches=len(kept),
            num_keys=len(gather_index) - int((~is_key).sum()),
        )


def select_paper_blocks(
    q: Tensor,  # [B, H, P, D]
    k: Tensor,  # [B, H, P, D]
    policy: PaperPolicy,
    *,
    num_special: int,
) -> BlockMap:
    """Pick key blocks for the patch queries exactly as the published code does.

    The most likely ``n`` of the ``C`` patch blocks are kept. `PaperPolicy.sparse_ratio` asks for
    ``int(C * (1 - sparse_ratio))`` of them; `PaperPolicy.cdf_threshold` for as many as stay within
    that share of the pooled softmax; the larger number counts, and at least one. Blocks that hold
    special tokens only are always kept.

    Args:
        q: Patch queries ``[B, H, P, D]`` in the order of `PaperOrder`, after q/k norm and
            positional encoding.
        k: Patch keys, likewise.
        policy: What to keep.
        num_special: Special keys that follow the patch keys.

    Returns:
        The map of patch queries and all keys, on q's device. Equal scores are taken in the order of
        the blocks; the published code takes them in any.

    Raises:
        ValueError: If scores are not finite.

    Example:
        >>> import torch
        >>> q = torch.randn(1, 2, 640, 64)
        >>> block_map = select_paper_blocks(q, q, PaperPolicy(sparse_ratio=0.75), num_special=70)
        >>> block_map.counts.unique().tolist(), block_map.num_sink_k_blocks
        ([2], 2)
    """
    batch, heads, num_patches, _ = q.shape
    block_q, block_k = Q_PER_K * policy.block_k, policy.block_k
    num_columns = math.ceil(num_patches / block_k)
    num_k_blocks = math.ceil((num_patches + num_special) / block_k)
    counts, columns = [], []
    for shares in pooled_shares(q, k, policy.pooling, block_k=block_k):
        keep = _keep(shares, policy)
        counts.append(keep.sum(-1))
        columns.append(keep.nonzero()[:, 1].to(torch.int32))
    num_rows = math.ceil(num_patches / block_q)
    row_offsets = torch.zeros(batch * heads * num_rows + 1, dtype=torch.int64, device=q.device)
    torch.cumsum(torch.cat(counts), 0, out=row_offsets[1:])
    return BlockMap(
        num_batch=batch,
        num_heads=heads,
        num_q_blocks=num_rows,
        num_k_blocks=num_k_blocks,
        block_q=block_q,
        block_k=block_k,
        row_offsets=row_offsets,
        columns=torch.cat(columns),
        num_sink_k_blocks=num_k_blocks - num_columns,
    )


def pooled_shares(
    q: Tensor,  # [B, H, P, D]
    k: Tensor,  # [B, H, P, D]
    pooling: Pooling = "mean",
    *,
    block_k: int = BLOCK_K,
) -> Iterator[Tensor]:
    """Yield the pooled attention in chunks of rows: batch-major, then head, then query block.

    Args:
        q: Patch queries ``[B, H, P, D]``.
        k: Patch keys ``[B, H, P, D]``.
        pooling: How the tokens of a block become one.
        block_k: Tokens of a key block; a query block has twice as many.

    Yields:
        ``[rows, C]``: softmax over the patch key blocks, float32 (float64 for float64 inputs).

    Raises:
        ValueError: If scores are not finite.
    """
    q_blocks = _pool(q, Q_PER_K * block_k, pooling)  # [B, H, R, D]
    k_blocks = _pool(k, block_k, pooling)  # [B, H, C, D]
    rows_per_chunk = max(_SCORES_PER_CHUNK // k_blocks.shape[2], 1)
    for queries, keys in zip(q_blocks.flatten(0, 1), k_blocks.flatten(0, 1), strict=True):
        for rows in queries.split(rows_per_chunk):
            # A caller's autocast would round the scores to 8 bits and tie blocks.
            with torch.autocast(q.device.type, enabled=False):
                scores = rows @ keys.transpose(0, 1) * q.shape[-1] ** -0.5
            if not bool(torch.isfinite(scores).all()):
                raise ValueError(
                    "`q` and `k` must be finite: pooled attention scores are NaN or infinite."
                )
            yield torch.softmax(scores, dim=-1)


def _keep(shares: Tensor, policy: PaperPolicy) -> Tensor:
    """Return ``[rows, C]`` booleans: the blocks that a policy keeps of each row."""
    num_columns = shares.shape[-1]
    least = 1
    if policy.sparse_ratio is not None:
        # In float64, and truncated: a ratio of 0.9 keeps 9 of 100 blocks, not 10.
        least = max(int(num_columns * (1 - policy.sparse_ratio)), least)
    shares, order = shares.sort(dim=-1, descending=True, stable=True)
    if policy.cdf_threshold is None:
        num_kept = torch.full_like(order[:, 0], least)
    else:
        is_within = shares.cumsum(-1) <= policy.cdf_threshold + _CDF_SLACK
        num_kept = is_within.sum(-1).clamp_min(least)
    is_kept = torch.arange(num_columns, device=shares.device) < num_kept[:, None]
    return torch.zeros_like(is_kept).scatter_(1, order, is_kept)


def _pool(tokens: Tensor, block: int, pooling: Pooling) -> Tensor:
    """Reduce ``[B, H, P, D]`` to one token for each block; the last holds what is left."""
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    num_whole = tokens.shape[2] // block * block
    parts = [tokens[:, :, :num_whole].unflatten(2, (-1, block))] if num_whole else []
    if num_whole < tokens.shape[2]:
        parts.append(tokens[:, :, num_whole:].unsqueeze(2))
    pooled = [
        part.mean(3, dtype=dtype) if pooling == "mean" else part.amax(3).to(dtype) for part in parts
    ]
    return torch.cat(pooled, dim=2)
