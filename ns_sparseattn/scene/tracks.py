# SPDX-License-Identifier: Apache-2.0
"""Candidates that other views confirm become points with tracks.

Two passes: `count_views` looks at all candidates and keeps two numbers each; `make_tracks` looks
again at the few that remain, fuses them and lists their observations.

Axes: ``C`` candidates, ``F`` frames, ``V`` frames in reach, ``L`` longest track, ``O``
observations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import invert_rigid, transform_points, unproject
from ..options import SceneOptions
from .cameras import SceneCameras
from .filters import Candidates
from .progress import Progress, report
from .views import Sightings, Views, find_sightings, frames_in_reach

_PAIRS_PER_CHUNK = 1 << 17
"""Pairs of a frame and a point looked at together: a few dozen arrays of this size are alive at a
time."""
_MAX_CHUNK = 1 << 15
_MIN_CHUNK = 1 << 8


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """Fused points and where they are seen; the source view comes first in each track."""

    candidate: Tensor  # [P] int64
    """Index of the candidate that each point was made of."""
    xyz: Tensor  # [P, 3] float64
    error: Tensor  # [P] float64
    """Mean reprojection error over the track, original pixels."""
    angle_deg: Tensor  # [P] float64
    """Largest angle between the ray of the source view and that of another view of the track,
    degrees."""
    obs_point: Tensor  # [O] int64
    obs_frame: Tensor  # [O] int64
    obs_xy: Tensor  # [O, 2] float64
    """Original pixels."""


def lift(candidates: Candidates, cameras: SceneCameras) -> Tensor:
    """Return the world points of candidates, ``[C, 3]`` float64."""
    in_cam = unproject(
        candidates.pixel, candidates.depth, cameras.network_intrinsics[candidates.frame]
    )
    return transform_points(invert_rigid(cameras.cam_from_world)[candidates.frame], in_cam)


def count_views(
    candidates: Candidates,
    points: Tensor,  # [C, 3] float64
    views: Views,
    options: SceneOptions,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Count the views that agree on each candidate, its own included.

    Returns:
        Number of views ``[C]`` int64, and the mean relative difference of depth in the others
        ``[C]`` float64 (0 without any).
    """
    num_views = torch.ones(len(candidates), dtype=torch.int64)
    difference = torch.zeros(len(candidates), dtype=torch.float64)
    for chunk, _, seen in _sightings(candidates, points, views, options, "agreement", progress):
        size = chunk.stop - chunk.start
        count = torch.bincount(seen.point, minlength=size)
        total = torch.bincount(seen.point, weights=(seen.ratio - 1.0).abs(), minlength=size)
        num_views[chunk] += count
        difference[chunk] = total / count.clamp(min=1)
    return num_views, difference


def make_tracks(
    candidates: Candidates,
    points: Tensor,  # [C, 3] float64
    views: Views,
    cameras: SceneCameras,
    options: SceneOptions,
    progress: Progress | None = None,
) -> Tracks:
    """Fuse each candidate with what the other views see there.

    A point's observations are the projections of its candidate: the pixels at which the views were
    compared. Its position is the mean of the positions that the views give to those pixels, and so
    its error measures how well they agree. Points that leave the photo or fall behind a camera of
    their track are dropped.
    """
    parts = [
        _fuse(chunk, frames, seen, candidates, points, cameras, options)
        for chunk, frames, seen in _sightings(
            candidates, points, views, options, "tracks", progress
        )
    ]
    num_points = 0
    obs_point = []
    for part in parts:
        obs_point.append(part.obs_point + num_points)
        num_points += part.xyz.shape[0]
    return Tracks(
        candidate=torch.cat([part.candidate for part in parts]),
        xyz=torch.cat([part.xyz for part in parts]),
        error=torch.cat([part.error for part in parts]),
        angle_deg=torch.cat([part.angle_deg for part in parts]),
        obs_point=torch.cat(obs_point),
        obs_frame=torch.cat([part.obs_frame for part in parts]),
        obs_xy=torch.cat([part.obs_xy for part in parts]),
    )


def _sightings(
    candidates: Candidates,
    points: Tensor,
    views: Views,
    options: SceneOptions,
    stage: str,
    progress: Progress | None,
) -> Iterator[tuple[slice, Tensor, Sightings]]:
    """Yield chunks of candidates, the frames in their reach, and what those see of them."""
    num_candidates, num_frames = len(candidates), views.depth.shape[0]
    size = min(max(_PAIRS_PER_CHUNK // num_frames, _MIN_CHUNK), _MAX_CHUNK)
    for start in range(0, num_candidates, size):
        chunk = slice(start, min(start + size, num_candidates))
        frames = frames_in_reach(views, points[chunk])
        seen = find_sightings(
            views,
            frames,
            points[chunk],
            candidates.frame[chunk],
            depth_tolerance=options.depth_tolerance,
            edge_tolerance=options.edge_tolerance,
        )
        yield chunk, frames, seen
        report(progress, stage, chunk.stop, num_candidates)


def _fuse(
    chunk: slice,
    frames: Tensor,  # [V]
    seen: Sightings,
    candidates: Candidates,
    points: Tensor,  # [C, 3]
    cameras: SceneCameras,
    options: SceneOptions,
) -> Tracks:
    """Make the tracks of one chunk."""
    xyz, source = points[chunk], candidates.frame[chunk]
    seen = _best(seen, xyz.shape[0], options.max_track_length - 1)
    frame = torch.cat([source, frames[seen.view]])
    point = torch.cat([torch.arange(xyz.shape[0]), seen.point])
    # The position that a view gives to a pixel lies on the ray to the candidate, at the ratio of
    # the depths.
    ray = xyz[seen.point] - cameras.centers[frames[seen.view]]
    offset = torch.where(seen.is_exact, seen.ratio - 1.0, 0.0)[:, None] * ray
    num_exact = 1 + torch.bincount(seen.point[seen.is_exact], minlength=xyz.shape[0])
    fused = xyz + _sum_by(offset, seen.point, xyz.shape[0]) / num_exact[:, None]

    pixels, _ = _project_to_photos(xyz[point], frame, cameras)
    is_inside = ((pixels >= 0) & (pixels < _photo_sizes(cameras)[frame])).all(-1)
    again, depth = _project_to_photos(fused[point], frame, cameras)
    is_inside &= depth > 0
    keep = torch.bincount(point[~is_inside], minlength=xyz.shape[0]) == 0
    length = torch.bincount(point, minlength=xyz.shape[0])
    keep &= length >= options.min_views
    distance = torch.linalg.vector_norm(again - pixels, dim=-1)
    error = torch.bincount(point, weights=distance, minlength=xyz.shape[0]) / length
    keep &= torch.isfinite(error)

    new_index = keep.long().cumsum(0) - 1
    is_kept = keep[point]
    # Stable: the source comes first, because it does in `point`.
    order = point[is_kept].sort(stable=True).indices
    return Tracks(
        candidate=keep.nonzero().flatten() + chunk.start,
        xyz=fused[keep],
        error=error[keep],
        angle_deg=_largest_angle(xyz, source, seen.point, frames[seen.view], cameras)[keep],
        obs_point=new_index[point[is_kept]][order],
        obs_frame=frame[is_kept][order],
        obs_xy=pixels[is_kept][order],
    )


def _best(seen: Sightings, num_points: int, limit: int) -> Sightings:
    """Keep the best agreeing views of each point, at most `limit`, and sort by point."""
    by_difference = (seen.ratio - 1.0).abs().sort(stable=True).indices
    order = by_difference[seen.point[by_difference].sort(stable=True).indices]
    point = seen.point[order]
    count = torch.bincount(point, minlength=num_points)
    rank = torch.arange(point.shape[0]) - (count.cumsum(0) - count)[point]
    order = order[rank < limit]
    return Sightings(
        view=seen.view[order],
        point=seen.point[order],
        ratio=seen.ratio[order],
        is_exact=seen.is_exact[order],
    )


def _sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum rows ``[K, 3]`` by index into ``[size, 3]``, in a fixed order."""
    columns = [torch.bincount(index, weights=row, minlength=size) for row in values.unbind(-1)]
    return torch.stack(columns, dim=-1)


def _project_to_photos(
    points: Tensor,  # [O, 3]
    frame: Tensor,  # [O]
    cameras: SceneCameras,
) -> tuple[Tensor, Tensor]:
    """Project each point into its frame; returns original pixels ``[O, 2]`` and depth ``[O]``."""
    projection = (cameras.original_intrinsics @ cameras.cam_from_world)[frame]
    x, y, z = ((projection[..., :3] * points.unsqueeze(-2)).sum(-1) + projection[..., 3]).unbind(-1)
    return torch.stack([x / z, y / z], dim=-1), z


def _photo_sizes(cameras: SceneCameras) -> Tensor:
    """Return width and height of each frame's photo, ``[F, 2]`` float64."""
    by_id = {camera.camera_id: (camera.width, camera.height) for camera in cameras.cameras}
    return torch.tensor([by_id[camera_id] for camera_id in cameras.camera_ids], dtype=torch.float64)


def _largest_angle(
    xyz: Tensor,  # [C, 3]
    source: Tensor,  # [C]
    point: Tensor,  # [K]
    frame: Tensor,  # [K]
    cameras: SceneCameras,
) -> Tensor:
    """Return the largest angle between source and another view, degrees, ``[C]``."""
    to_source = (cameras.centers[source] - xyz)[point]
    to_other = cameras.centers[frame] - xyz[point]
    # atan2 of sine and cosine stays exact for tiny angles, where the arc cosine does not.
    sine = torch.linalg.vector_norm(torch.linalg.cross(to_source, to_other), dim=-1)
    angle = torch.atan2(sine, (to_source * to_other).sum(-1)) * (180.0 / math.pi)
    largest = torch.zeros(xyz.shape[0], dtype=torch.float64)
    return largest.scatter_reduce(0, point, angle, "amax")
