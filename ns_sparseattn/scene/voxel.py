# SPDX-License-Identifier: Apache-2.0
"""Thin points evenly in space with a voxel grid.

Axes: ``P`` points.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 20
"""Bits of one signed voxel coordinate in a 63-bit key; points farther out share the outermost
voxels."""
_NUM_STEPS = 24
_FILL = 0.98
"""The search for the voxel size ends when this share of the points allowed remains."""


def thin_points(
    xyz: Tensor,  # [P, 3] float64
    *,
    max_points: int,
    track_length: Tensor,  # [P] int64
    error: Tensor,  # [P] float64
) -> Tensor:
    """Keep the best point of each voxel, with voxels as small as the number of points allows.

    Only the number of occupied voxels decides on their size, so a few points far away change
    nothing.

    Args:
        xyz: Positions.
        max_points: Most points that may remain.
        track_length: Longer is better.
        error: Smaller is better, among points of equal track length; then the first one wins.

    Returns:
        Indices of the points that remain, ascending: all of them if they are not too many.
    """
    if xyz.shape[0] <= max_points:
        return torch.arange(xyz.shape[0])
    centered = xyz - xyz.median(0).values
    keys = _voxel_keys(centered, _find_voxel_size(centered, max_points))
    by_error = error.sort(stable=True).indices
    best_first = by_error[track_length[by_error].sort(stable=True, descending=True).indices]
    by_voxel = keys[best_first].sort(stable=True)
    is_first = torch.ones_like(by_voxel.values, dtype=torch.bool)
    is_first[1:] = by_voxel.values[1:] != by_voxel.values[:-1]
    return best_first[by_voxel.indices[is_first]].sort().values


def _find_voxel_size(centered: Tensor, max_points: int) -> float:
    """Return the smallest voxel size found that leaves at most `max_points`."""
    # Half of the points lie within this distance of the middle, in every axis.
    distance = centered.abs().amax(-1)
    extent = float(distance.median()) or float(distance.max()) or 1.0
    size = extent / max_points**0.5
    largest_bad, smallest_good = 0.0, 0.0
    for _ in range(_NUM_STEPS):
        count = int(_voxel_keys(centered, size).unique().numel())
        if count > max_points:
            largest_bad = size
        else:
            smallest_good = size
            if count >= _FILL * max_points:
                break
        if not smallest_good:
            size *= 2.0
        elif not largest_bad:
            size /= 2.0
        else:
            size = (largest_bad * smallest_good) ** 0.5
    while not smallest_good:
        size *= 2.0
        if int(_voxel_keys(centered, size).unique().numel()) <= max_points:
            smallest_good = size
    return smallest_good


def _voxel_keys(centered: Tensor, size: float) -> Tensor:
    """Number the voxels of points ``[P, 3]``; returns ``[P]`` int64."""
    limit = 1 << _BITS
    # Rounded, not floored: a voxel around the middle can then hold everything, however few points
    # are allowed.
    cell = (centered / size).round().clamp(-limit, limit - 1).long() + limit
    x, y, z = cell.unbind(-1)
    return ((x << (_BITS + 1)) | y) << (_BITS + 1) | z
