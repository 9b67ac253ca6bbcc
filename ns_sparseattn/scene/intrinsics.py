# SPDX-License-Identifier: Apache-2.0
"""Predicted intrinsics become the shared cameras of the scene, in original pixels.

Axes: ``F`` frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..frames.types import Frame
from ..options import CameraType, SceneOptions
from .types import Camera, CameraModel

_MODELS: dict[CameraType, CameraModel] = {
    "pinhole": "PINHOLE",
    "simple_pinhole": "SIMPLE_PINHOLE",
    "perspective": "OPENCV",
}


def intrinsics_in_original(
    intrinsics: Tensor,  # [F, 3, 3]
    frames: tuple[Frame, ...],
) -> Tensor:
    """Turn intrinsics of network pixels into those of each photo, ``[F, 3, 3]`` float64."""
    return torch.stack(
        [
            frame.pixel_map.intrinsics_to_original(matrix)
            for frame, matrix in zip(frames, intrinsics.double(), strict=True)
        ]
    )


def has_plausible_focal(
    focal_x: float, focal_y: float, size: tuple[int, int], options: SceneOptions
) -> bool:
    """Return whether the fields of view across and down lie between the bounds of the options.

    Args:
        focal_x: Focal length across, pixels.
        focal_y: Focal length down, pixels.
        size: Width and height, pixels.
        options: Hold the bounds.
    """
    for focal, side in zip((focal_x, focal_y), size, strict=True):
        if not math.isfinite(focal) or focal <= 0.0:
            return False
        fov_deg = math.degrees(2.0 * math.atan(side / (2.0 * focal)))
        if not options.min_fov_deg <= fov_deg <= options.max_fov_deg:
            return False
    return True


def share_camera(
    camera_id: int,
    members: tuple[int, ...],
    frames: tuple[Frame, ...],
    predicted: Tensor,  # [F, 3, 3] float64
    options: SceneOptions,
) -> tuple[Camera, dict[int, str]]:
    """Make one camera of the frames that it took.

    Focal lengths are the median over the frames whose own is plausible; without any, the median of
    EXIF's, and without that, COLMAP's default. The principal point is the median of those that lie
    in the photo, else the centre.

    Args:
        camera_id: The camera's id, from 1 on.
        members: Indices of its frames, all of one size.
        frames: All frames.
        predicted: Intrinsics in original pixels.
        options: Bounds, default focal length and camera type.

    Returns:
        The camera, and for each frame whose prediction was not used a sentence that says so.
    """
    size = frames[members[0]].size
    matrices = predicted[list(members)]
    is_plausible = torch.tensor(
        [has_plausible_focal(float(k[0, 0]), float(k[1, 1]), size, options) for k in matrices]
    )
    if bool(is_plausible.any()):
        good = matrices[is_plausible]
        focal_x, focal_y = _median(good[:, 0, 0]), _median(good[:, 1, 1])
        source = "that of the other photos of its camera"
    else:
        focal_x, source = _fallback_focal([frames[index] for index in members], options)
        focal_y = focal_x
    center_x, center_y = _principal_point(matrices, size)
    notes = {
        index: (
            f"The predicted focal length ({float(k[0, 0]):.4g} x {float(k[1, 1]):.4g} pixels) is "
            f"implausible; {source} is used instead."
        )
        for index, k, plausible in zip(members, matrices, is_plausible.tolist(), strict=True)
        if not plausible
    }
    params = _camera_params(options.camera_type, focal_x, focal_y, center_x, center_y)
    camera = Camera(
        camera_id=camera_id,
        model=_MODELS[options.camera_type],
        width=size[0],
        height=size[1],
        params=params,
    )
    return camera, notes


def _camera_params(
    camera_type: CameraType, focal_x: float, focal_y: float, center_x: float, center_y: float
) -> tuple[float, ...]:
    """Order the parameters as COLMAP does."""
    if camera_type == "simple_pinhole":
        return ((focal_x + focal_y) / 2.0, center_x, center_y)
    if camera_type == "pinhole":
        return (focal_x, focal_y, center_x, center_y)
    return (focal_x, focal_y, center_x, center_y, 0.0, 0.0, 0.0, 0.0)


def _fallback_focal(frames: list[Frame], options: SceneOptions) -> tuple[float, str]:
    """Return a focal length in pixels when no prediction is plausible, and where it comes from."""
    from_exif = [
        focal
        for focal in (frame.exif.focal_length_px for frame in frames)
        if focal is not None and has_plausible_focal(focal, focal, frames[0].size, options)
    ]
    if from_exif:
        return _median(torch.tensor(from_exif, dtype=torch.float64)), "EXIF's"
    factor = options.default_focal_factor
    return factor * max(frames[0].size), f"{factor:g} times the longer side"


def _principal_point(intrinsics: Tensor, size: tuple[int, int]) -> tuple[float, float]:
    """Return the median principal point of ``[M, 3, 3]`` inside the photo, else its centre."""
    points = intrinsics[:, :2, 2]
    limit = points.new_tensor(size)
    is_inside = ((points > 0) & (points < limit)).all(-1)
    if not bool(is_inside.any()):
        return size[0] / 2.0, size[1] / 2.0
    return _median(points[is_inside, 0]), _median(points[is_inside, 1])


def _median(values: Tensor) -> float:
    """Return the median; of an even number, the mean of the middle two."""
    return float(values.double().quantile(0.5))
