# SPDX-License-Identifier: Apache-2.0
"""Which photos to match: those that, by the prediction, show the same surface.

The number of pairs grows linearly with the photos. Judging overlap compares all photos with all,
but only by projecting a few hundred points each, which is nothing beside matching.

Axes: ``F`` frames, ``S`` surface samples of a frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..frames.types import Frames
from ..geometry import camera_centers, invert_rigid, project, transform_points, unproject
from ..prediction import Prediction
from ..scene.types import Scene
from .matching import Pair
from .options import MatchOptions


def sample_surface(
    scene: Scene,
    options: MatchOptions,
    *,
    prediction: Prediction | None = None,
    frames: Frames | None = None,
) -> Tensor:
    """Return world points that each image shows.

    They come from predicted depth if there is any, else from the scene's points, else from rays cut
    at an assumed distance.

    Args:
        scene: Cameras, poses and perhaps points.
        options: Hold the number of samples.
        prediction: Depth in the scene's scale, for the same images.
        frames: Belong to the prediction.

    Returns:
        ``[F, S, 3]`` float64, NaN where an image has fewer samples.
    """
    if prediction is not None and frames is not None:
        return _from_depth(scene, prediction, frames, options.surface_samples)
    if len(scene.points.obs_point):
        return _from_points(scene, options.surface_samples)
    return _from_assumed_distance(scene, options.surface_samples)


def propose_pairs(
    scene: Scene,
    surface: Tensor,  # [F, S, 3]
    options: MatchOptions,
    *,
    pairs_per_image: int,
) -> set[Pair]:
    """Choose pairs to match.

    Each image gets the images of largest overlap, and some of smaller overlap, which tie distant
    parts together; a maximum spanning tree keeps the scene connected.

    Args:
        scene: Cameras and poses.
        surface: What each image shows, of `sample_surface`.
        options: Margins and least overlap.
        pairs_per_image: How many partners each image chooses.

    Returns:
        The pairs, smaller index first.
    """
    overlap = predict_overlap(scene, surface, options)
    num_images = len(scene.images)
    # Three of four partners are the nearest; the fourth comes from the rest of those that overlap.
    num_near = max(1, math.ceil(0.75 * pairs_per_image))
    pairs: set[Pair] = set()
    for index in range(num_images):
        order = overlap[index].sort(descending=True, stable=True).indices
        order = order[overlap[index][order] >= options.min_overlap]
        near, rest = order[:num_near], order[num_near:]
        num_far = min(pairs_per_image - num_near, len(rest))
        steps = torch.linspace(0, max(len(rest) - 1, 0), num_far + 2)[1:-1].round().long()
        for other in [*near.tolist(), *rest[steps].tolist()]:
            pairs.add((min(index, other), max(index, other)))
    return pairs | _spanning_tree(overlap, scene)


def predict_overlap(
    scene: Scene,
    surface: Tensor,  # [F, S, 3]
    options: MatchOptions,
) -> Tensor:
    """Return the share of each image's surface that each other image sees, both ways.

    Returns:
        ``[F, F]`` float64, symmetric (the geometric mean of both directions), zero diagonal.
    """
    poses = torch.stack([image.cam_from_world for image in scene.images])
    intrinsics = torch.stack([scene.camera_of(image).intrinsics for image in scene.images])
    size = torch.tensor(
        [[scene.camera_of(i).width, scene.camera_of(i).height] for i in scene.images]
    ).double()
    centers = camera_centers(poses)
    min_cosine = math.cos(math.radians(options.max_viewing_angle_deg))
    share = torch.zeros(len(poses), len(poses), dtype=torch.float64)
    for index, points in enumerate(surface):
        points = points[points.isfinite().all(-1)]
        if not len(points):
            continue
        in_cam = transform_points(poses[:, None], points)
        pixels, depth = project(in_cam, intrinsics[:, None])
        margin = options.overlap_margin * size[:, None]
        is_inside = ((pixels >= -margin) & (pixels <= size[:, None] + margin)).all(-1)
        here = torch.nn.functional.normalize(points - centers[index], dim=-1)
        there = torch.nn.functional.normalize(points - centers[:, None], dim=-1)
        is_seen = is_inside & (depth > 0) & ((here * there).sum(-1) >= min_cosine)
        share[index] = is_seen.double().mean(-1)
    overlap = (share * share.T).sqrt()
    return overlap.fill_diagonal_(0.0)


def _from_depth(scene: Scene, prediction: Prediction, frames: Frames, num_samples: int) -> Tensor:
    """Lift a grid of predicted depth."""
    height, width = prediction.depth.shape[1:]
    num_columns = max(1, round(math.sqrt(num_samples * width / height)))
    num_rows = max(1, round(num_samples / num_columns))
    rows = ((torch.arange(num_rows) + 0.5) * height / num_rows).long()
    columns = ((torch.arange(num_columns) + 0.5) * width / num_columns).long()
    grid = torch.stack(torch.meshgrid(columns + 0.5, rows + 0.5, indexing="xy"), -1).double()
    surface = []
    for index, (image, frame) in enumerate(zip(scene.images, frames.frames, strict=True)):
        depth = prediction.depth[index][rows][:, columns].double()
        x0, y0, x1, y1 = frame.pixel_map.box
        is_photo = (grid[..., 0] >= x0) & (grid[..., 0] < x1)
        is_photo &= (grid[..., 1] >= y0) & (grid[..., 1] < y1)
        is_valid = is_photo & depth.isfinite() & (depth > 0)
        pixels = frame.pixel_map.to_original(grid)
        in_cam = unproject(pixels, depth, scene.camera_of(image).intrinsics)
        points = transform_points(invert_rigid(image.cam_from_world), in_cam)
        surface.append(torch.where(is_valid[..., None], points, math.nan).flatten(0, 1))
    return torch.stack(surface)


def _from_points(scene: Scene, num_samples: int) -> Tensor:
    """Take points that each image observes, spread evenly over their order."""
    surface = torch.full((len(scene.images), num_samples, 3), math.nan, dtype=torch.float64)
    for index in range(len(scene.images)):
        seen = scene.points.obs_point[scene.points.obs_image == index]
        if len(seen):
            step = torch.linspace(0, len(seen) - 1, min(num_samples, len(seen))).round().long()
            surface[index, : len(step)] = scene.points.xyz[seen[step]]
    return surface


def _from_assumed_distance(scene: Scene, num_samples: int) -> Tensor:
    """Cut rays where the cameras look: at the point nearest to all optical axes, if in front."""
    poses = torch.stack([image.cam_from_world for image in scene.images])
    centers, forward = camera_centers(poses), poses[:, 2, :3]
    # The point that minimizes the summed squared distance to the axes.
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]
    target = torch.linalg.lstsq(across.sum(0), (across @ centers[..., None]).sum(0)).solution[:, 0]
    distance = ((target - centers) * forward).sum(-1)
    extent = scene_extent(centers)
    # Cameras that look outwards have no such point; their surroundings are about a scene away.
    fallback = extent if extent > 0 else 1.0
    distance = torch.where(distance > 0.1 * fallback, distance, fallback)
    side = max(2, round(math.sqrt(num_samples)))
    steps = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).flatten(0, 1)
    surface = []
    for image, depth in zip(scene.images, distance, strict=True):
        camera = scene.camera_of(image)
        pixels = grid * grid.new_tensor([camera.width, camera.height])
        in_cam = unproject(pixels, depth.expand(len(pixels)), camera.intrinsics)
        surface.append(transform_points(invert_rigid(image.cam_from_world), in_cam))
    return torch.stack(surface)


def scene_extent(
    centers: Tensor,  # [F, 3]
) -> float:
    """Return the largest distance between two camera centres."""
    return float(torch.cdist(centers, centers).max()) if len(centers) else 0.0


def _spanning_tree(overlap: Tensor, scene: Scene) -> set[Pair]:
    """Return a maximum spanning tree; among pairs without overlap, near and parallel ones win."""
    num_images = len(overlap)
    poses = torch.stack([image.cam_from_world for image in scene.images])
    centers = camera_centers(poses)
    distance = torch.cdist(centers, centers) / max(scene_extent(centers), 1e-12)
    turned = 1.0 - poses[:, 2, :3] @ poses[:, 2, :3].T
    # Less than any overlap, and larger where cameras are closer.
    affinity = overlap - 1e-3 * (distance + turned)
    best, parent = affinity[0].clone(), torch.zeros(num_images, dtype=torch.int64)
    is_in = torch.zeros(num_images, dtype=torch.bool)
    is_in[0] = True
    pairs: set[Pair] = set()
    for _ in range(num_images - 1):
        index = int(best.masked_fill(is_in, -math.inf).argmax())
        other = int(parent[index])
        pairs.add((min(index, other), max(index, other)))
        is_in[index] = True
        is_closer = affinity[index] > best
        parent[is_closer] = index
        best = torch.maximum(best, affinity[index])
    return pairs
