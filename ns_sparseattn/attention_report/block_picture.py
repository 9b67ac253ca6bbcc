# SPDX-License-Identifier: Apache-2.0
"""A head's block map as a small picture, without ever making the whole map.

Axes: ``NQ`` query blocks, ``NK`` key blocks, ``h`` x ``w`` cells of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention import BlockMap


def draw_block_map(block_map: BlockMap, head: int, *, max_side: int) -> Tensor:
    """Reduce the map of one head to a picture of the share of block pairs that are computed.

    Args:
        block_map: The map; its first batch slot is drawn.
        head: Which head.
        max_side: Rows and columns of the picture at most.

    Returns:
        ``[h, w]`` in [0, 1], row 0 the first query block, full rows and sinks included.

    Example:
        >>> import torch
        >>> mask = torch.eye(4, dtype=torch.bool)[None, None]
        >>> draw_block_map(BlockMap.from_mask(mask), 0, max_side=2).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    num_q, num_k = block_map.num_q_blocks, block_map.num_k_blocks
    height, width = min(num_q, max_side), min(num_k, max_side)
    first = head * block_map.num_listed_q_blocks
    offsets = block_map.row_offsets[first : first + block_map.num_listed_q_blocks + 1].cpu()
    columns = block_map.columns[offsets[0] : offsets[-1]].long().cpu()
    rows = torch.repeat_interleave(torch.arange(block_map.num_listed_q_blocks), offsets.diff())
    cells = rows * height // num_q * width + columns * width // num_k
    picture = cells.bincount(minlength=height * width).double().reshape(height, width)
    rows_per_cell = (torch.arange(num_q) * height // num_q).bincount().double()
    columns_per_cell = (torch.arange(num_k) * width // num_k).bincount().double()
    # Block pairs that no list holds: sinks of the listed rows, and everything of the full ones.
    is_sink = torch.arange(num_k) >= block_map.num_listed_k_blocks
    sinks_per_cell = _sum_cells(is_sink, width)
    is_full = torch.arange(num_q) >= block_map.num_listed_q_blocks
    full_per_cell = _sum_cells(is_full, height)
    picture += (rows_per_cell - full_per_cell)[:, None] * sinks_per_cell
    picture += full_per_cell[:, None] * columns_per_cell
    return picture / (rows_per_cell[:, None] * columns_per_cell)


def _sum_cells(flags: Tensor, num_cells: int) -> Tensor:
    """Count the blocks with a flag in each cell."""
    cells = torch.arange(len(flags)) * num_cells // len(flags)
    return torch.zeros(num_cells, dtype=torch.float64).index_add_(0, cells, flags.double())
