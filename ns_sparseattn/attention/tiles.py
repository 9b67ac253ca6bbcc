# SPDX-License-Identifier: Apache-2.0
"""Patches ordered in tiles across frames, so that a block holds one place of a few similar photos.

A block of 64 keys is 4 by 4 patches of four frames, a block of 128 queries two such tiles side by
side; other block sizes have larger or smaller squares of four frames. Compared with runs of patches
within a frame that makes the tokens of a block more alike: more attention mass in as many blocks,
and means that stand better for what is left out (``python -m benchmarks.selection``). Photos rarely
come in a useful order, so the frames are first chained by similarity.

Axes: ``H`` heads, ``N`` the model's tokens, ``F`` frames, ``P`` patches of a frame,
``D`` head size.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .layout import BLOCK_K, TokenLayout

FRAMES = 4
"""Frames of a tile."""

_FRAMES_PER_CHUNK = 32
"""Frames whose keys are pooled at once, which bounds memory."""


def tile_side(block_k: int) -> int:
    """Return the patches along each side of a tile: with `FRAMES` they fill a key block.

    Raises:
        ValueError: If no square does.
    """
    side = math.isqrt(max(block_k, 0) // FRAMES)
    if side < 1 or FRAMES * side**2 != block_k:
        raise ValueError(
            f"`block_k` must be {FRAMES} times a square, such as 16 or 64, got {block_k}."
        )
    return side


def tile_order(
    tokens: TokenLayout,
    frame_order: Tensor,  # [F] int64
    *,
    block_k: int = BLOCK_K,
) -> Tensor:
    """Return the patches of all frames in tiles.

    Consecutive frames of `frame_order` form groups; each group is walked through tile by tile, in
    rows that alternate in direction, so that tiles cut short at the border leave the next block
    among neighbours.

    Args:
        tokens: How the model's tokens lie.
        frame_order: ``[F]``, frames that are alike after each other.
        block_k: Tokens of a key block, as many as a tile has patches.

    Returns:
        ``[F * P]`` int64 on the CPU: ids ``frame * P + row * grid_width + column``.
    """
    height, width = tokens.grid_height, tokens.grid_width
    side = tile_side(block_k)
    place, row, column = torch.meshgrid(
        torch.arange(tokens.num_frames),
        torch.arange(height),
        torch.arange(width),
        indexing="ij",
    )
    tile_row, tile_column = row // side, column // side
    tile_column = torch.where(tile_row % 2 == 0, tile_column, -tile_column)
    ids = frame_order.cpu()[place] * tokens.num_patches + row * width + column
    # numpy sorts by the last key first.
    keys = (column, row, place, tile_column, tile_row, place // FRAMES)
    order = np.lexsort([key.flatten().numpy() for key in keys])
    return ids.flatten()[torch.from_numpy(order)]


@torch.no_grad()
def chain_frames(
    k: Tensor,  # [H, N, D]
    tokens: TokenLayout,
    key_mask: Tensor | None = None,  # [N] bool
    *,
    block_k: int = BLOCK_K,
) -> Tensor:
    """Order frames so that each follows the one most similar to it, beginning with the first.

    Two frames are similar if their mean keys agree tile by tile: they show the same things in the
    same places, which is what shared blocks need.

    Args:
        k: ``[H, N, D]``, the keys of one scene in the model's order.
        tokens: How they lie.
        key_mask: False where a key counts as 0.
        block_k: Tokens of a key block.

    Returns:
        ``[F]`` int64 on the CPU.
    """
    # A caller's autocast would leave 8 bits of the similarities.
    with torch.autocast(k.device.type, enabled=False):
        means = _tile_means(k, tokens, key_mask, tile_side(block_k))  # [F, any]
        features = F.normalize(means, dim=-1)
        similarity = (features @ features.T).cpu().numpy().copy()
    chain = [0]
    for _ in range(tokens.num_frames - 1):
        # Nobody may be followed by a frame that is in the chain already.
        similarity[:, chain[-1]] = -np.inf
        chain.append(int(similarity[chain[-1]].argmax()))
    return torch.tensor(chain)


def _tile_means(k: Tensor, tokens: TokenLayout, key_mask: Tensor | None, side: int) -> Tensor:
    """Return each frame's mean keys over squares of two by two tiles, ``[F, any]`` float32."""
    grid = (tokens.grid_height, tokens.grid_width)
    means = []
    for ids in tokens.patch_ids(k.device).split(_FRAMES_PER_CHUNK):
        keys = k[:, ids].float()  # [H, f, P, D]
        if key_mask is not None:
            keys = keys.masked_fill(~key_mask[ids][None, :, :, None], 0.0)
        images = keys.permute(1, 0, 3, 2).flatten(1, 2).unflatten(-1, grid)
        means.append(F.avg_pool2d(images, 2 * side, ceil_mode=True).flatten(1))
    return torch.cat(means)
