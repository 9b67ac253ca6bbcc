# SPDX-License-Identifier: Apache-2.0
"""How much views share, by depth reprojection, and the choice of views that share enough.

Axes: ``B`` scenes, ``V`` views, ``F`` chosen frames, ``G`` grid points of a view.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.draws import Draws
from training.world import Views

_GRID = 12
"""Points along each side of a view."""
_TOLERANCE = 0.03
"""Largest difference of depths that are the same, as a share of the depth."""
_WORST = -10.0


def measure_overlap(views: Views, grid: int = _GRID) -> Tensor:
    """Return the share of each view's surface that each other view sees.

    Args:
        views: ``[B, V]`` views.
        grid: Points along each side of a view that are tried.

    Returns:
        ``[B, V, V]``, entry ``i, j`` the share of the pixels of ``i`` with depth whose points ``j``
        sees, too, not behind something else; 0 where a view has next to no depth.
    """
    height, width = views.depth.shape[-2:]
    device = views.depth.device
    rows = ((torch.arange(grid, device=device) + 0.5) * height / grid).long()
    columns = ((torch.arange(grid, device=device) + 0.5) * width / grid).long()
    depth = views.depth[..., rows[:, None], columns].flatten(2)  # [B, V, G]
    y, x = torch.meshgrid(rows + 0.5, columns + 0.5, indexing="ij")
    pixel = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)
    in_cam = depth[..., None] * (pixel @ views.intrinsics.inverse().transpose(-1, -2))
    rotation, translation = views.cam_from_world[..., :3], views.cam_from_world[..., 3]
    in_world = (in_cam - translation[:, :, None]) @ rotation  # [B, V, G, 3]
    in_other = (
        in_world[:, :, None] @ rotation.transpose(-1, -2)[:, None] + translation[:, None, :, None]
    )
    image = in_other @ views.intrinsics.transpose(-1, -2)[:, None]  # [B, V, V, G, 3]
    z = image[..., 2].clamp(min=1e-6)
    column, row = (image[..., 0] / z).floor(), (image[..., 1] / z).floor()
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    is_inside &= image[..., 2] > 0
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
    seen = views.depth.flatten(2)[:, None].expand(-1, len(depth[0]), -1, -1).gather(3, place)
    # Where a depth map is steep, neighbouring pixels differ by more than the tolerance; half a
    # pixel off is no reason to call a point hidden.
    is_same = (z - seen).abs() < _TOLERANCE * seen
    has_depth = (depth > 0)[:, :, None]
    count = has_depth.sum(-1)
    share = (is_inside & is_same & has_depth).sum(-1) / count.clamp(min=1)
    return share * (count >= 0.15 * grid * grid)


def choose_views(
    overlap: Tensor,  # [B, V, V]
    num_frames: int,
    draws: Draws,
    *,
    least: float,
    most: float = 0.95,
) -> Tensor:
    """Choose views of which each shares enough with one that was chosen before it.

    Args:
        overlap: As `measure_overlap` gives it.
        num_frames: How many to choose.
        draws: Random numbers for each scene.
        least: Overlap in both directions that a view should have with an earlier one. Where no view
            has as much, the one with the most is taken.
        most: Views that overlap more than this with an earlier one are taken last.

    Returns:
        Indices ``[B, F]``; the first is the reference.

    Raises:
        ValueError: If there are not enough views.
    """
    num_views = overlap.shape[1]
    if num_frames > num_views:
        raise ValueError(f"`num_frames` must be at most {num_views}, got {num_frames}.")
    mutual = torch.minimum(overlap, overlap.transpose(1, 2))
    identity = torch.eye(num_views, device=overlap.device, dtype=torch.bool)
    # Start from views that share something with another one.
    best = mutual.masked_fill(identity, 0.0).amax(-1)
    first = (draws.uniform(num_views) + (best >= least) + best).argmax(-1)
    chosen = [first]
    taken = torch.nn.functional.one_hot(first, num_views).bool()
    shared = _row(mutual, first)
    for _ in range(num_frames - 1):
        is_good = (shared >= least) & (shared <= most)
        score = torch.where(is_good, 1.0 + draws.uniform(num_views), shared)
        # Near copies only if nothing else is left that shares anything.
        score = torch.where(shared > most, least * score, score)
        following = score.masked_fill(taken, _WORST).argmax(-1)
        chosen.append(following)
        taken = taken | torch.nn.functional.one_hot(following, num_views).bool()
        shared = torch.maximum(shared, _row(mutual, following))
    return torch.stack(chosen, dim=1)


def _row(matrix: Tensor, index: Tensor) -> Tensor:
    """Return ``matrix[b, index[b]]``."""
    return matrix.gather(1, index[:, None, None].expand(-1, 1, matrix.shape[2]))[:, 0]
