# SPDX-License-Identifier: Apache-2.0
"""How far the reference's points move in the photos if seen through the estimated cameras.

Each observation of the reference's structure is projected twice: through the reference's camera,
and, after the worlds are aligned by the similarity of the camera centres, through the estimated
one, distortion included. The distance between both, in pixels of the reference's photos, is what a
trainer sees of all camera errors together. It does not depend on measured image points, so that
the reference against itself has none.

Axes: ``O`` observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..geometry import transform_points
from .alignment import Similarity
from .types import Lens, PosedModel


@dataclass(frozen=True, kw_only=True)
class PixelError:
    """Distances over all observations of the reference's points; infinite behind a camera."""

    num_observations: int
    median_px: float
    percentile_90_px: float
    num_behind: int
    """Observations that the estimated camera would not see at all, counted as infinitely far."""


def pixel_error(
    estimate: PosedModel, reference: PosedModel, estimate_from_reference: Similarity
) -> PixelError | None:
    """Project the reference's structure into both models' cameras.

    Args:
        estimate: The images that have both, in the reference's order.
        reference: The same images, with structure.
        estimate_from_reference: Maps the reference's world.

    Returns:
        The errors, or ``None`` if there are no points, or no images with intrinsics in both.

    Raises:
        ReconstructionError: If pycolmap is missing.
    """
    structure = reference.structure
    if structure is None:
        return None
    distances: list[Tensor] = []
    order = structure.obs_image.sort(stable=True).indices
    counts = torch.bincount(structure.obs_image, minlength=len(reference)).tolist()
    for index, members in enumerate(order.split(counts)):
        lens, true_lens = estimate.lenses[index], reference.lenses[index]
        if lens is None or true_lens is None or not len(members):
            continue
        points = structure.xyz[structure.obs_point[members]]
        true_pixels = _project(true_lens, reference.cam_from_world[index], points)
        moved = estimate_from_reference.apply(points)
        pixels = _project(lens, estimate.cam_from_world[index], moved)
        scale = torch.tensor(
            [true_lens.width / lens.width, true_lens.height / lens.height], dtype=torch.float64
        )
        distance = (pixels * scale - true_pixels).norm(dim=-1)
        # Points that the reference itself has behind a camera say nothing.
        distances.append(distance[~true_pixels.isnan().any(-1)])
    if not sum(len(distance) for distance in distances):
        return None
    every = torch.cat(distances)
    is_behind = every.isnan()
    every = torch.where(is_behind, math.inf, every)
    return PixelError(
        num_observations=len(every),
        median_px=_percentile(every, 50),
        percentile_90_px=_percentile(every, 90),
        num_behind=int(is_behind.sum()),
    )


def _percentile(values: Tensor, percentile: int) -> float:
    """Return the smallest value that so many per cent of all do not exceed; never interpolated.

    Interpolation would make NaN between finite and infinite values.
    """
    rank = max(1, math.ceil(len(values) * percentile / 100))
    return float(values.kthvalue(rank).values)


def _project(lens: Lens, cam_from_world: Tensor, points: Tensor) -> Tensor:
    """Return pixels ``[O, 2]``, NaN behind the camera."""
    from ..export.colmap import import_pycolmap

    camera = import_pycolmap().Camera(
        model=lens.model, width=int(lens.width), height=int(lens.height), params=list(lens.params)
    )
    in_cam = transform_points(cam_from_world, points).numpy()
    return torch.from_numpy(np.asarray(camera.img_from_cam(in_cam), dtype=np.float64))
