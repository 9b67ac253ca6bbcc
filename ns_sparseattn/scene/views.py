# SPDX-License-Identifier: Apache-2.0
"""Seeing points in other frames: projection, the frame's own depth there, and whether both agree.

Axes: ``F`` frames, ``V`` the frames looked at, ``C`` points looked at, ``K`` pairs of
both, ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..frames.types import Frames
from .cameras import SceneCameras


@dataclass(frozen=True, kw_only=True)
class Views:
    """All that is needed to look up points in the frames, in network pixels."""

    depth: Tensor  # [F, H, W]
    """0 where a pixel is not valid."""
    box: Tensor  # [F, 4] int64
    """Part of the tensor that shows the photo: x0, y0, x1, y1, ends excluded."""
    projection: Tensor  # [F, 3, 4] float64
    """Network pixels from world points, homogeneous."""
    planes: Tensor  # [F, 5, 4] float64
    """The frustum's sides, pointing inwards: the camera plane, left, right, top, bottom."""


@dataclass(frozen=True, kw_only=True)
class Sightings:
    """Pairs of a frame and a point that agree, sorted by frame, then by point."""

    view: Tensor  # [K] int64
    """Index into the frames looked at."""
    point: Tensor  # [K] int64
    """Index into the points looked at."""
    ratio: Tensor  # [K] float64
    """Depth of the frame over depth of the point: 1 if they agree perfectly."""
    is_exact: Tensor  # [K] bool
    """Whether the frame's depth was interpolated; false at depth edges, where it is the nearest
    pixel's."""


def make_views(
    depth: Tensor,  # [F, H, W]
    frames: Frames,
    cameras: SceneCameras,
) -> Views:
    """Collect boxes, projections and frustums of all frames."""
    box = torch.tensor([frame.pixel_map.box for frame in frames.frames])
    projection = cameras.network_intrinsics @ cameras.cam_from_world
    x, y, z = projection.unbind(1)
    x0, y0, x1, y1 = box.double().unsqueeze(-1).unbind(1)
    planes = torch.stack([z, x - x0 * z, x1 * z - x, y - y0 * z, y1 * z - y], dim=1)
    return Views(depth=depth, box=box, projection=projection, planes=planes)


def frames_in_reach(
    views: Views,
    points: Tensor,  # [C, 3]
) -> Tensor:
    """Return the frames ``[V]`` whose frustum meets the box around all points."""
    low, high = points.amin(0), points.amax(0)
    center, half = (low + high) / 2, (high - low) / 2
    normals = views.planes[..., :3]
    farthest_inside = (normals * center).sum(-1) + (normals.abs() * half).sum(-1)
    farthest_inside += views.planes[..., 3]
    return (farthest_inside >= 0).all(-1).nonzero().flatten()


def find_sightings(
    views: Views,
    frames: Tensor,  # [V] int64
    points: Tensor,  # [C, 3] float64
    source: Tensor,  # [C] int64
    *,
    depth_tolerance: float,
    edge_tolerance: float,
) -> Sightings:
    """Find which points which frames see.

    A frame sees a point that projects into its photo onto valid pixels, in front of it, where the
    frame's own depth differs from the point's by no more than the tolerance. The depth there is
    interpolated bilinearly in its inverse, which is exact for planes, up to the border of the
    photo; at depth edges it is that of the nearest pixel.

    Args:
        views: The frames.
        frames: Which of them to look at.
        points: World points.
        source: The frame that each point comes from; it is left out.
        depth_tolerance: Largest difference of depth, as a share of the point's.
        edge_tolerance: Largest span of the four pixels around, as a share of the nearest's depth,
            for interpolation.

    Returns:
        The pairs that agree.
    """
    x, y, z = _project(views.projection[frames], points)
    u, v = x / z, y / z
    x0, y0, x1, y1 = views.box[frames].unsqueeze(-1).unbind(1)
    is_seen = (z > 0) & (u >= x0) & (u < x1) & (v >= y0) & (v < y1)
    is_seen &= frames[:, None] != source
    view, point = is_seen.nonzero(as_tuple=True)
    seen_depth, is_exact = _sample_depth(
        views, frames[view], u[view, point], v[view, point], edge_tolerance
    )
    ratio = seen_depth / z[view, point]
    agrees = (seen_depth > 0) & ((ratio - 1.0).abs() <= depth_tolerance)
    return Sightings(
        view=view[agrees], point=point[agrees], ratio=ratio[agrees], is_exact=is_exact[agrees]
    )


def _project(projection: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Apply ``[V, 3, 4]`` to ``[C, 3]``; returns x, y, z of shape ``[V, C]``.

    Written out, because sums in a matrix product may be ordered differently from run to run.
    """
    x, y, z = points.unbind(-1)
    rows = []
    for row in projection.unsqueeze(-1).unbind(1):
        a, b, c, d = row.unbind(1)
        rows.append((a * x).addcmul_(b, y).addcmul_(c, z).add_(d))
    return rows[0], rows[1], rows[2]


def _sample_depth(
    views: Views,
    frame: Tensor,  # [K]
    u: Tensor,  # [K]
    v: Tensor,  # [K]
    edge_tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Look up depth at network pixels inside the photos.

    Returns:
        Depth ``[K]``, 0 where the nearest pixel is not valid, and whether it was interpolated
        ``[K]``.
    """
    x0, y0, x1, y1 = views.box[frame].unbind(-1)
    column, next_column, weight_x = _neighbours(u, x0, x1)
    row, next_row, weight_y = _neighbours(v, y0, y1)
    height, width = views.depth.shape[1:]
    flat = views.depth.flatten()
    top, bottom = (frame * height + row) * width, (frame * height + next_row) * width
    d00, d01 = flat[top + column].double(), flat[top + next_column].double()
    d10, d11 = flat[bottom + column].double(), flat[bottom + next_column].double()
    near = torch.minimum(torch.minimum(d00, d01), torch.minimum(d10, d11))
    far = torch.maximum(torch.maximum(d00, d01), torch.maximum(d10, d11))
    # An invalid pixel has depth 0, which makes `near` 0 and the span too large.
    is_smooth = (near > 0) & (far - near <= edge_tolerance * near)
    inverse_top = torch.lerp(1.0 / d00, 1.0 / d01, weight_x)
    inverse_bottom = torch.lerp(1.0 / d10, 1.0 / d11, weight_x)
    smooth = 1.0 / torch.lerp(inverse_top, inverse_bottom, weight_y)
    nearest = torch.where(
        weight_y < 0.5, torch.where(weight_x < 0.5, d00, d01), torch.where(weight_x < 0.5, d10, d11)
    )
    return torch.where(is_smooth, smooth, nearest), is_smooth


def _neighbours(position: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels around a position in ``[low, high)`` and the second one's weight.

    In the outermost half pixel the weight leaves [0, 1], which extrapolates linearly.
    """
    first = (position - 0.5).floor().long().clamp(low, torch.maximum(high - 2, low))
    second = torch.minimum(first + 1, high - 1)
    return first, second, position - 0.5 - first
