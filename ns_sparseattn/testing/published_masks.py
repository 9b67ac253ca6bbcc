# SPDX-License-Identifier: Apache-2.0
"""Published choices of pixels that may make points, for comparison with recordings.

An edge is where both the depth jumps and the surface turns. MapAnything's search for turns has two
faults, which Pi3's has not, kept here because recordings show them: angles come from an arc cosine
that is not clamped, so rounding turns a third of those of a pixel with itself, and with them all of
that pixel's, into NaN; and whether a neighbour has a normal is looked up at the transposed offset.
The package itself looks for edges in `ns_sparseattn.scene`.

Axes: ``F`` frames, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_DEPTH_TOLERANCE = 0.03
_ANGLE_TOLERANCE_DEG = 5.0
_EPS = 1e-12


def published_mask(
    points_in_cam: Tensor,  # [F, H, W, 3]
    confidence: Tensor,  # [F, H, W]
    is_surface: Tensor,  # [F, H, W]
    confidence_percentile: float,
) -> Tensor:
    """Return which pixels may make points, ``[F, H, W]`` bool.

    Args:
        points_in_cam: Points in each camera.
        confidence: Larger is better.
        is_surface: Where the network sees an unambiguous surface.
        confidence_percentile: Per cent of each frame's pixels to leave out.
    """
    least = torch.quantile(confidence.flatten(1), confidence_percentile / 100, dim=1)
    mask = is_surface & (confidence > least[:, None, None])
    normals, has_normal = point_normals(points_in_cam, mask)
    is_edge = depth_edges(points_in_cam[..., 2], mask) & normal_edges(normals, has_normal)
    return mask & ~is_edge


def point_normals(
    points: Tensor,  # [F, H, W, 3]
    mask: Tensor,  # [F, H, W]
) -> tuple[Tensor, Tensor]:
    """Return unit normals of a grid of points, and where there are any.

    A normal is the mean of those of up to four triangles, each of the pixel and two neighbours at a
    right angle, all of them in the mask.

    Returns:
        ``[F, H, W, 3]``, 0 where there is none, and ``[F, H, W]`` bool.
    """
    padded, is_there = F.pad(points, (0, 0, 1, 1, 1, 1)), F.pad(mask, (1, 1, 1, 1))
    height, width = mask.shape[1:]
    around = ((0, 1), (1, 0), (2, 1), (1, 2))  # Up, left, down, right.
    sides = [padded[:, y : y + height, x : x + width] - points for y, x in around]
    valid = [is_there[:, y : y + height, x : x + width] & mask for y, x in around]
    total = torch.zeros_like(points)
    has_normal = torch.zeros_like(mask)
    for i in range(4):
        j = (i + 1) % 4
        both = valid[i] & valid[j]
        total += _unit(torch.linalg.cross(sides[i], sides[j])) * both.unsqueeze(-1)
        has_normal |= both
    return _unit(total), has_normal


def normal_edges(
    normals: Tensor,  # [F, H, W, 3]
    has_normal: Tensor,  # [F, H, W]
    *,
    has_faults: bool = True,
) -> Tensor:
    """Return where normals within two pixels of each other differ, ``[F, H, W]`` bool.

    Args:
        normals: Unit normals.
        has_normal: Where there are any.
        has_faults: Whether to look as MapAnything does, or as Pi3.
    """
    normals = _unit(normals)
    height, width = has_normal.shape[1:]
    padded = F.pad(normals.movedim(-1, 1), (1, 1, 1, 1), mode="replicate").movedim(1, -1)
    is_there = F.pad(has_normal.float(), (1, 1, 1, 1), mode="replicate") > 0
    largest = torch.zeros(has_normal.shape)
    for y in range(3):
        for x in range(3):
            neighbour = padded[:, y : y + height, x : x + width]
            cosine = _dot(normals, neighbour)
            angle = (cosine if has_faults else cosine.clamp(-1, 1)).acos()
            dy, dx = (x, y) if has_faults else (y, x)
            counts = is_there[:, dy : dy + height, dx : dx + width]
            largest = torch.maximum(largest, torch.where(counts, angle, 0.0))
    largest = torch.where(largest.isnan(), -math.inf, largest)
    return _largest_around(largest) > math.radians(_ANGLE_TOLERANCE_DEG)


def depth_edges(
    depth: Tensor,  # [F, H, W]
    mask: Tensor,  # [F, H, W]
) -> Tensor:
    """Return where the depth around a pixel spans more than a share of its own, ``[F, H, W]``."""
    span = sum(_largest_around(d.masked_fill(~mask, -math.inf)) for d in (depth, -depth))
    return span / depth > _DEPTH_TOLERANCE


def _largest_around(values: Tensor) -> Tensor:
    return F.max_pool2d(values.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)


def _unit(vectors: Tensor) -> Tensor:
    # Through float64, because torch's square root of float32 is not always the nearest.
    length = _dot(vectors, vectors).double().sqrt().float()
    return vectors / (length + _EPS).unsqueeze(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # Spelled out, because whether a sum exceeds one in its last bit depends on its order.
    products = a * b
    return products[..., 0] + products[..., 1] + products[..., 2]
