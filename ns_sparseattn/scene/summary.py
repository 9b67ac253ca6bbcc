# SPDX-License-Identifier: Apache-2.0
"""What each image contributes to a scene.

Axes: ``F`` frames, ``H`` network rows, ``W`` network columns, ``O`` observations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..prediction import Prediction
from .cameras import SceneCameras
from .types import ImageSummary, Points


def summarise_images(
    prediction: Prediction,
    depth: Tensor,  # [F, H, W]
    cameras: SceneCameras,
    points: Points,
    names: tuple[str, ...],
) -> tuple[ImageSummary, ...]:
    """Count points, confidence and errors of each image.

    Args:
        prediction: Holds the confidence.
        depth: 0 where a pixel is not valid; confidence is taken over the valid ones, 0 without any.
        cameras: Poses, intrinsics and what is wrong with them.
        points: The scene's points.
        names: The images' names.

    Returns:
        One summary per image, in order.
    """
    num_images = len(names)
    count = torch.bincount(points.obs_image, minlength=num_images).tolist()
    total = torch.bincount(
        points.obs_image, weights=reprojection_errors(points, cameras), minlength=num_images
    ).tolist()
    summaries = []
    for index, name in enumerate(names):
        confidence = prediction.confidence[index][depth[index] > 0]
        notes = list(cameras.image_notes[index])
        if confidence.numel() == 0 and bool(cameras.is_posed[index]):
            notes.append("No pixel has a usable depth.")
        elif count[index] == 0 and bool(cameras.is_posed[index]):
            notes.append("No point of the scene is seen in it.")
        summaries.append(
            ImageSummary(
                name=name,
                num_points=count[index],
                median_confidence=float(confidence.median()) if confidence.numel() else 0.0,
                mean_error_px=total[index] / count[index] if count[index] else None,
                notes=tuple(notes),
            )
        )
    return tuple(summaries)


def reprojection_errors(points: Points, cameras: SceneCameras) -> Tensor:
    """Return the distance of observations to their points' projections, ``[O]``, in pixels."""
    errors = torch.empty(points.obs_point.shape[0], dtype=torch.float64)
    projections = cameras.original_intrinsics @ cameras.cam_from_world
    order = points.obs_image.sort(stable=True).indices
    counts = torch.bincount(points.obs_image, minlength=projections.shape[0]).tolist()
    for projection, members in zip(projections, order.split(counts), strict=True):
        xyz = points.xyz[points.obs_point[members]]
        x, y, z = ((projection[:, :3] * xyz[:, None, :]).sum(-1) + projection[:, 3]).unbind(-1)
        pixels = torch.stack([x / z, y / z], dim=-1)
        errors[members] = torch.linalg.vector_norm(pixels - points.obs_xy[members], dim=-1)
    return errors
