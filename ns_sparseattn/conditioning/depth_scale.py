# SPDX-License-Identifier: Apache-2.0
"""By how much known depth must be multiplied to agree between views whose poses are known.

No network is asked. A point that is lifted by the depth of one view, and seen by another, must have
the depth that is known there; the share of points for which that holds is largest at the right
scale.

Axes: ``F`` views, ``S`` factors, ``N`` points, ``H`` x ``W`` network pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import camera_centers, pixel_centers, project, unproject

MIN_GAIN = 0.2
"""Share of the points by which the best factor must beat others, or none is told. Chosen: a right
one makes most points agree that no other view hides, a wrong one few."""
_MAX_PAIRS = 20
_POINTS_PER_PAIR = 200
_MAX_ANGLE_DEG = 60.0
"""Views that look in more different directions rarely see the same."""
_MIN_SEEN = 0.05
"""Share of the points that must fall into the other views for a factor to count."""
_RANGE = 100.0
"""Depths are sought from this many times the extent of the cameras to a share as small."""
_FINE = 2.0
"""Tolerances by which the factor may still be off after the first look."""
_NEARLY = 0.95
"""Factors that are nearly as good as the best are averaged, as a share of its share."""


@dataclass(frozen=True, kw_only=True)
class DepthScale:
    """What multiplies known depth to bring it into the unit of the poses."""

    factor: float
    is_better_than_one: bool
    """Whether clearly fewer points agree if the depth is taken as it is."""


def find_depth_scale(
    cam_from_world: Tensor,  # [F, 3, 4]
    intrinsics: Tensor,  # [F, 3, 3]
    depth: Tensor,  # [F, H, W]
    *,
    tolerance: float,
) -> DepthScale | None:
    """Find the factor at which views agree on the depth.

    Args:
        cam_from_world: Known poses.
        intrinsics: Network pixels.
        depth: z-depth in another unit than the poses, 0 where unknown.
        tolerance: Share by which depths that agree may differ.

    Returns:
        The factor; ``None`` if the views do not tell: too few, no baseline, nothing in common.
    """
    poses, intrinsics, depth = (x.double() for x in (cam_from_world, intrinsics, depth))
    centers = camera_centers(poses)
    extent = float(torch.cdist(centers, centers).max()) if len(poses) > 1 else 0.0
    known = depth[depth > 0]
    pairs = _pairs(poses)
    if extent <= 0 or not known.numel() or not pairs:
        return None
    typical = extent / float(known.median())
    count = math.ceil(2 * math.log(_RANGE) / tolerance)
    factors = typical * torch.logspace(-1, 1, count, base=_RANGE, dtype=torch.float64)
    shares = _shares(poses, intrinsics, depth, pairs, factors, tolerance)
    best = int(shares.argmax())
    if float(shares[best] - shares[-1]) < MIN_GAIN:
        return None
    # Once more around the best, with a sharper eye.
    fine = float(factors[best]) * torch.linspace(1 - _FINE * tolerance, 1 + _FINE * tolerance, 41)
    fine = fine.double()
    sharp = _shares(poses, intrinsics, depth, pairs, fine, tolerance / 4)
    plateau = fine[sharp >= _NEARLY * sharp.max()]
    as_it_is = _shares(poses, intrinsics, depth, pairs, torch.ones(1).double(), tolerance)
    return DepthScale(
        factor=float(plateau.log().mean().exp()),
        is_better_than_one=float(shares[best] - as_it_is[0]) >= MIN_GAIN,
    )


def _pairs(poses: Tensor) -> list[tuple[int, int]]:
    """Return pairs of views that look in similar directions, a bounded number spread over all."""
    axes = poses[:, 2, :3]
    is_similar = axes @ axes.T > math.cos(math.radians(_MAX_ANGLE_DEG))
    pairs = is_similar.fill_diagonal_(False).nonzero().tolist()
    step = max(1, math.ceil(len(pairs) / _MAX_PAIRS))
    return [(first, second) for first, second in pairs[::step]]


def _shares(
    poses: Tensor,  # [F, 3, 4]
    intrinsics: Tensor,  # [F, 3, 3]
    depth: Tensor,  # [F, H, W]
    pairs: list[tuple[int, int]],
    factors: Tensor,  # [S]
    tolerance: float,
) -> Tensor:
    """Return the share of points on which pairs of views agree at each factor, ``[S]``."""
    height, width = depth.shape[1:]
    pixels = pixel_centers(height, width).flatten(0, 1)
    agree, seen = torch.zeros_like(factors), torch.zeros_like(factors)
    num_points = 0
    for first, second in pairs:
        flat = depth[first].flatten()
        chosen = flat.nonzero()[:, 0]
        chosen = chosen[:: max(1, len(chosen) // _POINTS_PER_PAIR)]
        num_points += len(chosen)
        points = unproject(pixels[chosen], flat[chosen], intrinsics[first])  # [N, 3]
        rotation = poses[second, :, :3] @ poses[first, :, :3].T
        shift = poses[second, :, 3] - rotation @ poses[first, :, 3]
        moved = factors[:, None, None] * (points @ rotation.T) + shift  # [S, N, 3]
        xy, z = project(moved, intrinsics[second])
        is_inside = (z > 0) & (xy >= 0).all(-1) & (xy[..., 0] < width) & (xy[..., 1] < height)
        column, row = (torch.where(is_inside, xy[..., i], 0.0).long() for i in (0, 1))
        other = depth[second][row, column]
        is_seen = is_inside & (other > 0)
        is_equal = (z - factors[:, None] * other).abs() <= tolerance * z
        agree += (is_seen & is_equal).sum(1)
        seen += is_seen.sum(1)
    return torch.where(seen >= max(1.0, _MIN_SEEN * num_points), agree / seen.clamp_min(1.0), 0.0)
