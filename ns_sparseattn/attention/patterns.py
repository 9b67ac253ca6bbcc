# SPDX-License-Identifier: Apache-2.0
"""Which keys a query attends to, whatever made the choice; for measuring, not for computing.

Axes: ``B`` batch, ``H`` heads, ``N`` tokens in the model's order, ``M`` places in block order,
``S`` sampled queries, ``R`` listed query blocks, ``NK`` key blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .block_map import BlockMap
from .layout import TokenLayout


@dataclass(frozen=True, kw_only=True)
class BlockPattern:
    """A block map, and where each token lies in its blocks."""

    block_map: BlockMap
    gather_index: Tensor  # [1 or B, M] int64
    """Token that each place holds; in padding any."""
    scatter_index: Tensor  # [1 or B, N] int64
    """Place of each token."""
    num_queries: int
    """Places that are queries of the map, the first ones; tokens beyond attend to everything."""
    key_mask: Tensor | None = None  # [1 or B, M] bool
    """False where a place holds no token."""
    has_coarse: bool = False
    """Whether blocks that are left out contribute through their means."""

    def keys_of(self, batch_slot: int, head: int, queries: Tensor) -> Tensor:
        """Return which tokens some tokens attend to, in the model's order.

        Args:
            batch_slot: Index of the batch slot.
            head: Index of the head.
            queries: ``[S]`` tokens in the model's order.

        Returns:
            ``[S, N]`` booleans.
        """
        places = self.scatter_index[batch_slot % len(self.scatter_index)]
        blocks = self.blocks_of(batch_slot, head, queries)
        # Tokens that are no keys may lie behind the last block.
        of_tokens = (places // self.block_map.block_k).clamp_max(self.block_map.num_k_blocks - 1)
        return blocks[:, of_tokens]

    def blocks_of(self, batch_slot: int, head: int, queries: Tensor) -> Tensor:
        """Return which key blocks some tokens attend to, sinks included, ``[S, NK]`` booleans."""
        block_map = self.block_map
        places = self.scatter_index[batch_slot % len(self.scatter_index)]
        places = places[queries]
        rows = places // block_map.block_q
        blocks = torch.ones(len(rows), block_map.num_k_blocks, dtype=torch.bool, device=rows.device)
        is_listed = (places < self.num_queries) & (rows < block_map.num_listed_q_blocks)
        first_row = (batch_slot * block_map.num_heads + head) * block_map.num_listed_q_blocks
        blocks[is_listed, : block_map.num_listed_k_blocks] = _listed(
            block_map, first_row + rows[is_listed]
        )
        return blocks

    def row_densities(self) -> Tensor:
        """Return the share of all tokens that each listed query block attends to, ``[B, H, R]``."""
        block_map = self.block_map
        device = block_map.columns.device
        num_places = self.gather_index.shape[1]
        exists = self.key_mask
        if exists is None:
            exists = torch.ones(1, num_places, dtype=torch.bool, device=device)
        extra = block_map.num_k_blocks * block_map.block_k - num_places
        padded = torch.nn.functional.pad(exists.expand(block_map.num_batch, -1), (0, extra))
        sizes = padded.unflatten(1, (block_map.num_k_blocks, block_map.block_k)).sum(-1)  # [B, NK]
        counts = block_map.counts.flatten()
        rows = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
        rows_per_slot = max(block_map.num_heads * block_map.num_listed_q_blocks, 1)
        of_entries = sizes[rows // rows_per_slot, block_map.columns.long()]
        listed = torch.zeros_like(counts).index_add_(0, rows, of_entries)
        sinks = sizes[:, block_map.num_listed_k_blocks :].sum(-1)[:, None, None]
        return (listed.reshape(block_map.counts.shape) + sinks) / sizes.sum(-1)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class FramePattern:
    """Attention within frames, as `ns_sparseattn.attention.frame_attention` computes it."""

    tokens: TokenLayout
    with_first_frame: bool = False

    def keys_of(self, batch_slot: int, head: int, queries: Tensor) -> Tensor:
        """Return which tokens some tokens attend to; see `BlockPattern.keys_of`."""
        tokens = torch.arange(self.tokens.num_tokens, device=queries.device)
        frames = tokens // self.tokens.tokens_per_frame  # Tokens without a frame have the last.
        of_queries = frames[queries][:, None]
        is_shared = frames == self.tokens.num_frames
        keys = (of_queries == frames) | is_shared | (of_queries == self.tokens.num_frames)
        if self.with_first_frame:
            keys |= frames == 0
        return keys


Pattern = BlockPattern | FramePattern


def _listed(block_map: BlockMap, rows: Tensor) -> Tensor:
    """Expand the lists of some rows, ``[S, C]`` booleans."""
    starts = block_map.row_offsets[rows]
    counts = block_map.row_offsets[rows + 1] - starts
    ids = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    # Position of every entry: where its row starts, plus its place among the row's entries.
    shifts = torch.repeat_interleave(starts - counts.cumsum(0) + counts, counts)
    positions = shifts + torch.arange(len(ids), device=rows.device)
    listed = torch.zeros(
        len(rows), block_map.num_listed_k_blocks, dtype=torch.bool, device=rows.device
    )
    listed[ids, block_map.columns[positions].long()] = True
    return listed
