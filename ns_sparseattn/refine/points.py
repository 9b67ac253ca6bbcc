# SPDX-License-Identifier: Apache-2.0
"""Points of a refined scene: triangulated tracks first, dense prediction where they leave gaps.

Axes: ``F`` frames, ``P`` points, ``O`` observations, ``H`` network rows, ``W`` network columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ReconstructionError
from ..frames.types import Frame, Frames
from ..geometry import pixel_centers, transform_points
from ..options import SceneOptions
from ..prediction import Prediction
from ..scene import build_scene
from ..scene.colours import ReadRgb, sample_colours
from ..scene.types import ImageSummary, Points, Scene
from .two_view import SceneRays

_CELLS = 96
"""Cells along the longer side of a photo; dense points stay out of cells that tracks occupy."""

_MIN_SCALE_POINTS = 10
"""Tracks that an image must see for a depth scale of its own."""

_MAX_DEPTH_SPREAD = 0.3
"""Depth whose ratio to that of the tracks is off its median by more than this share, in the median,
makes no points: the network has not understood the photo. Others are right to a few per cent."""


def read_tracks(reconstruction: Any, scene: Scene) -> Points:
    """Return the triangulated points of a reconstruction, without colours.

    Args:
        reconstruction: Its image ``i + 1`` is image ``i`` of the scene.
        scene: The images.

    Returns:
        Points in the order of their ids, black; observations sorted by point, then by image. An
        image that a track meets twice is observed once.
    """
    reconstruction.update_point_3d_errors()
    points = sorted(reconstruction.points3D.items())
    ids = np.array([point_id for point_id, _ in points], dtype=np.uint64)
    images: list[NDArray[np.int64]] = []
    numbers: list[NDArray[np.int64]] = []
    pixels: list[NDArray[np.float64]] = []
    for image_id in sorted(reconstruction.reg_image_ids()):
        keypoints = reconstruction.image(image_id).get_observation_points2D()
        seen = np.array([keypoint.point3D_id for keypoint in keypoints], dtype=np.uint64)
        seen, first = np.unique(seen, return_index=True)
        images.append(np.full(len(seen), image_id - 1))
        numbers.append(np.searchsorted(ids, seen))
        xy = np.array([keypoint.xy for keypoint in keypoints], dtype=np.float64)
        pixels.append(xy.reshape(-1, 2)[first])
    image = np.concatenate([np.zeros(0, dtype=np.int64), *images])
    number = np.concatenate([np.zeros(0, dtype=np.int64), *numbers])
    order = np.lexsort((image, number))
    xyz = np.array([point.xyz for _, point in points], dtype=np.float64).reshape(-1, 3)
    return Points(
        xyz=torch.from_numpy(xyz),
        rgb=torch.zeros(len(points), 3, dtype=torch.uint8),
        error=torch.tensor([point.error for _, point in points], dtype=torch.float64),
        obs_point=torch.from_numpy(number[order]),
        obs_image=torch.from_numpy(image[order]),
        obs_xy=torch.from_numpy(np.concatenate([np.zeros((0, 2)), *pixels])[order]),
    )


def fill_points(
    scene: Scene,
    prediction: Prediction,
    frames: Frames,
    options: SceneOptions,
    *,
    read_rgb: ReadRgb | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scene:
    """Add predicted points where a refined scene has no tracks, and colour all.

    Depth is brought to the scale of the tracks, image by image, seen through the refined cameras,
    and fused by the agreement of views, as for a scene that was not refined. Depth that no scale
    brings near the tracks makes no points.

    Args:
        scene: A refined scene: its points are tracks.
        prediction: The depth, in any scale.
        frames: The photos, one per image.
        options: Filters and the most points.
        read_rgb: Reads a photo; `ns_sparseattn.frames.read_rgb` if not given.
        progress: Called as ``progress(stage, done, total)``.

    Returns:
        The scene with coloured points, tracks first, and summaries.
    """
    if read_rgb is None:
        from ..frames import read_rgb as read_rgb_from_disk

        read_rgb = read_rgb_from_disk
    rays = SceneRays.of(scene)
    scaled = _through_refined_cameras(scene, prediction, frames, rays)
    try:
        dense = build_scene(scaled, frames, options, read_rgb=_read_nothing, progress=progress)
        extra = _select(_distort(dense.points, scene, rays), scene, options.max_points)
        summaries = dense.summaries
    except ReconstructionError:
        # No pixel has a depth that agrees with the tracks: these are all there is.
        extra, summaries = _take(scene.points, torch.zeros(0, dtype=torch.int64)), ()
    points = _concatenate(scene.points, extra)
    points = replace(points, rgb=_colours(points, frames, read_rgb, progress))
    return replace(scene, points=points, summaries=_summaries(scene, points, summaries))


def _through_refined_cameras(
    scene: Scene, prediction: Prediction, frames: Frames, rays: SceneRays
) -> Prediction:
    """Return the prediction with refined cameras, and depth as a lens without distortion sees it.

    The network's input shows distorted photos. Each pixel of the ideal camera takes the depth of
    the nearest pixel of the input where the lens puts its ray.
    """
    scales = _depth_scales(scene, prediction, frames)
    height, width = prediction.depth.shape[1:]
    grid = pixel_centers(height, width)
    depths, confidences, intrinsics = [], [], []
    for index, frame in enumerate(frames.frames):
        camera = scene.camera_of(scene.images[index])
        matrix = frame.pixel_map.intrinsics_to_network(camera.intrinsics)
        intrinsics.append(matrix)
        on_plane = (grid - matrix[:2, 2]) / matrix.diagonal()[:2]
        shown = frame.pixel_map.to_network(_to_photo(rays.camera(index), on_plane.flatten(0, 1)))
        column, row = shown.floor().nan_to_num(-1.0).clamp(-1, 10 * max(height, width)).long().T
        is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        source = (row * width + column).where(is_inside, torch.zeros_like(row))
        depth = prediction.depth[index].flatten()[source] * scales[index]
        depths.append(depth.where(is_inside, torch.zeros_like(depth)).view(height, width))
        confidences.append(prediction.confidence[index].flatten()[source].view(height, width))
    return replace(
        prediction,
        cam_from_world=torch.stack([image.cam_from_world for image in scene.images]).float(),
        intrinsics=torch.stack(intrinsics).float(),
        depth=torch.stack(depths),
        confidence=torch.stack(confidences),
    )


def _depth_scales(scene: Scene, prediction: Prediction, frames: Frames) -> Tensor:
    """Return the median ratio of triangulated over predicted depth of each image, ``[F]``.

    It is zero, which leaves no depth, where the two have little to do with each other.
    """
    points = scene.points
    height, width = prediction.depth.shape[1:]
    scales = torch.full((len(frames),), float("nan"))
    for index, frame in enumerate(frames.frames):
        mine = points.obs_image == index
        pose = scene.images[index].cam_from_world
        depth = transform_points(pose, points.xyz[points.obs_point[mine]])[:, 2]
        pixel = frame.pixel_map.to_network(points.obs_xy[mine]).floor().long()
        column, row = pixel[:, 0].clamp(0, width - 1), pixel[:, 1].clamp(0, height - 1)
        ratio = depth / prediction.depth[index][row, column].double()
        ratio = ratio[ratio.isfinite() & (ratio > 0)]
        if len(ratio) >= _MIN_SCALE_POINTS:
            scale = ratio.median()
            is_right = (ratio / scale - 1.0).abs().median() <= _MAX_DEPTH_SPREAD
            scales[index] = scale if is_right else 0.0
    known = scales[scales.isfinite() & (scales > 0)]
    return scales.where(scales.isfinite(), known.median() if len(known) else torch.tensor(1.0))


def _to_photo(camera: Any, on_plane: Tensor) -> Tensor:
    """Project points ``[P, 2]`` on the plane z = 1 with the lens, to original pixels."""
    rays = torch.cat([on_plane, torch.ones(len(on_plane), 1, dtype=torch.float64)], dim=1)
    return torch.from_numpy(np.array(camera.img_from_cam(rays.numpy())))


def _distort(points: Points, scene: Scene, rays: SceneRays) -> Points:
    """Move observations from where an ideal camera sees them to where the photo shows them."""
    obs_xy = points.obs_xy.clone()
    is_inside = torch.zeros(len(obs_xy), dtype=torch.bool)
    for index, image in enumerate(scene.images):
        mine = (points.obs_image == index).nonzero().flatten()
        camera = scene.camera_of(image)
        matrix = camera.intrinsics
        on_plane = (points.obs_xy[mine] - matrix[:2, 2]) / matrix.diagonal()[:2]
        shown = _to_photo(rays.camera(index), on_plane)
        obs_xy[mine] = shown
        size = shown.new_tensor([camera.width, camera.height])
        is_inside[mine] = ((shown >= 0) & (shown < size)).all(-1)
    return replace(
        points,
        obs_point=points.obs_point[is_inside],
        obs_image=points.obs_image[is_inside],
        obs_xy=obs_xy[is_inside],
    )


def _select(dense: Points, scene: Scene, max_points: int) -> Points:
    """Take points that two views confirm, where no track is near, up to the most allowed."""
    occupied = {index: _cells(scene, scene.points, index) for index in range(len(scene.images))}
    is_free = torch.ones(len(dense), dtype=torch.bool)
    for index in range(len(scene.images)):
        mine = dense.obs_image == index
        is_taken = torch.isin(_cells(scene, dense, index), occupied[index])
        is_free[dense.obs_point[mine][is_taken]] = False
    chosen = (is_free & (dense.track_length >= 2)).nonzero().flatten()
    budget = max(max_points - len(scene.points), 0)
    if len(chosen) > budget:
        # Evenly over the points, which are in the order of their photos.
        chosen = chosen[torch.linspace(0, len(chosen) - 1, budget).round().long()]
    return _take(dense, chosen)


def _cells(scene: Scene, points: Points, index: int) -> Tensor:
    """Return the cell of each observation in one image."""
    camera = scene.camera_of(scene.images[index])
    cell = points.obs_xy[points.obs_image == index] * (_CELLS / max(camera.width, camera.height))
    column, row = cell.floor().long().unbind(-1)
    return row * (_CELLS + 1) + column


def _take(points: Points, chosen: Tensor) -> Points:
    """Return some of the points, with their observations."""
    number = torch.full((len(points),), -1, dtype=torch.int64)
    number[chosen] = torch.arange(len(chosen))
    is_kept = number[points.obs_point] >= 0
    return Points(
        xyz=points.xyz[chosen],
        rgb=points.rgb[chosen],
        error=points.error[chosen],
        obs_point=number[points.obs_point[is_kept]],
        obs_image=points.obs_image[is_kept],
        obs_xy=points.obs_xy[is_kept],
    )


def _concatenate(first: Points, second: Points) -> Points:
    return Points(
        xyz=torch.cat([first.xyz, second.xyz]),
        rgb=torch.cat([first.rgb, second.rgb]),
        error=torch.cat([first.error, second.error]),
        obs_point=torch.cat([first.obs_point, second.obs_point + len(first)]),
        obs_image=torch.cat([first.obs_image, second.obs_image]),
        obs_xy=torch.cat([first.obs_xy, second.obs_xy]),
    )


def _colours(
    points: Points,
    frames: Frames,
    read_rgb: ReadRgb,
    progress: Callable[[str, int, int], None] | None,
) -> Tensor:
    """Sample the colour of each point where its first image sees it."""
    is_first = torch.ones_like(points.obs_point, dtype=torch.bool)
    is_first[1:] = points.obs_point[1:] != points.obs_point[:-1]
    return sample_colours(
        frames.frames, points.obs_image[is_first], points.obs_xy[is_first], read_rgb, progress
    )


def _read_nothing(frame: Frame) -> np.ndarray:
    """Stand in for a photo: colours are sampled later, where the lens puts the points."""
    return np.zeros((frame.size[1], frame.size[0], 3), dtype=np.uint8)


def _summaries(
    scene: Scene, points: Points, dense: tuple[ImageSummary, ...]
) -> tuple[ImageSummary, ...]:
    """Count each image's points and errors anew; confidence is the prediction's."""
    num_images = len(scene.images)
    count = torch.bincount(points.obs_image, minlength=num_images).tolist()
    errors = points.error[points.obs_point]
    total = torch.bincount(points.obs_image, weights=errors, minlength=num_images).tolist()
    return tuple(
        ImageSummary(
            name=image.name,
            num_points=count[index],
            median_confidence=dense[index].median_confidence if dense else 0.0,
            mean_error_px=total[index] / count[index] if count[index] else None,
            notes=dense[index].notes if dense else (),
        )
        for index, image in enumerate(scene.images)
    )
