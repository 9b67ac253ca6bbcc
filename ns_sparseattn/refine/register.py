# SPDX-License-Identifier: Apache-2.0
"""Place images anew by their matches with triangulated points.

Axes: ``M`` matches.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ..export.colmap import import_pycolmap
from .adjust import Model, place
from .options import RefineOptions, Round

_logger = logging.getLogger(__name__)


def register_images(
    model: Model, candidates: Collection[int], settings: Round, options: RefineOptions
) -> tuple[int, ...]:
    """Estimate the poses of images from points that the others see, the best matched first.

    Args:
        model: With triangulated points; changed in place.
        candidates: Numbers of images without a pose.
        settings: Thresholds by which each new image extends the points.
        options: Least number of points.

    Returns:
        Numbers of the images that were placed.
    """
    from .adjust import triangulation_options

    pycolmap = import_pycolmap()
    waiting = {i for i in candidates if model.reconstruction.exists_image(i + 1)}
    placed: list[int] = []
    while waiting:
        seen = {index: _correspondences(model, index) for index in sorted(waiting)}
        index = max(seen, key=lambda index: (len(seen[index][0]), -index))
        waiting.discard(index)
        pose = _estimate(model, index, *seen[index], options)
        if pose is None:
            continue
        place(model, index, pose)
        placed.append(index)
        triangulator = pycolmap.IncrementalTriangulator(
            model.graph, model.reconstruction, model.manager
        )
        triangulator.triangulate_image(triangulation_options(settings, options), index + 1)
    _logger.info("Placed %d of %d images by their matches.", len(placed), len(candidates))
    return tuple(placed)


def _correspondences(model: Model, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return pixels ``[M, 2]`` of an image and the points ``[M, 3]`` that others see there."""
    reconstruction = model.reconstruction
    mine = reconstruction.image(index + 1).points2D
    pixels, points = [], []
    used: set[tuple[int, int]] = set()
    for other_id in model.image_ids:
        if other_id == index + 1:
            continue
        matches = model.graph.extract_matches_between_images(index + 1, other_id)
        if not len(matches):
            continue
        theirs = reconstruction.image(other_id).points2D
        for here, there in np.asarray(matches).tolist():
            if not theirs[there].has_point3D():
                continue
            key = (here, theirs[there].point3D_id)
            if key not in used:
                used.add(key)
                pixels.append(mine[here].xy)
                points.append(reconstruction.point3D(key[1]).xyz)
    return np.array(pixels).reshape(-1, 2), np.array(points).reshape(-1, 3)


def _estimate(
    model: Model,
    index: int,
    pixels: NDArray[np.float64],
    points: NDArray[np.float64],
    options: RefineOptions,
) -> NDArray[np.float64] | None:
    """Return the pose ``[3, 4]`` that most points agree on, or ``None`` with too few."""
    pycolmap = import_pycolmap()
    if len(pixels) < options.min_registration_inliers:
        return None
    settings = pycolmap.AbsolutePoseEstimationOptions()
    settings.ransac.max_error = options.registration_error_px
    settings.ransac.random_seed = 0
    camera = model.reconstruction.camera(model.reconstruction.image(index + 1).camera_id)
    found = pycolmap.estimate_and_refine_absolute_pose(pixels, points, camera, settings)
    if found is None or found["num_inliers"] < options.min_registration_inliers:
        return None
    return found["cam_from_world"].matrix()
