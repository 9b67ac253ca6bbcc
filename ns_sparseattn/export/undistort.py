# SPDX-License-Identifier: Apache-2.0
"""Scenes without lens distortion: PINHOLE cameras, and photos and masks bent straight.

The new cameras are COLMAP's (``undistort_camera``): same focal lengths and principal point, and the
largest picture in which every pixel still comes from the photo. Pixels are interpolated
bilinearly. Poses and points stay as they are.

Axes: ``O`` observations.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ReconstructionError
from ..scene.types import PARAM_NAMES, Camera, Scene
from .colmap import import_pycolmap

_PERSPECTIVE = frozenset({"f", "fx", "fy", "cx", "cy"})
"""Parameters that are no distortion."""


@dataclass(frozen=True, kw_only=True)
class Undistortion:
    """How pictures of a camera become those of its PINHOLE twin."""

    camera: Camera
    pinhole: Camera

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the new pictures."""
        return self.pinhole.width, self.pinhole.height

    def photo(self, rgb: np.ndarray) -> Image.Image:
        """Return a photo, ``[H, W, 3]`` uint8, without distortion."""
        return Image.fromarray(self._warp(rgb))

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask, ``[H, W]`` bool, without distortion; true where all sources are."""
        return self._warp(np.where(mask, 255, 0).astype(np.uint8)) == 255

    def pixels(self, xy: Tensor) -> Tensor:
        """Return where pixels ``[O, 2]`` of the old pictures lie in the new ones.

        Raises:
            ReconstructionError: If the distortion cannot be undone there.
        """
        seen = _to_colmap(self.camera).cam_from_img(xy.double().numpy())
        straight = torch.from_numpy(np.asarray(seen, dtype=np.float64)).reshape(-1, 2)
        if not bool(torch.isfinite(straight).all()):
            raise ReconstructionError(
                f"The distortion of camera {self.camera.camera_id} ({self.camera.model}, "
                f"{self.camera.params}) cannot be undone: the camera is not plausible."
            )
        fx, fy, cx, cy = self.pinhole.params
        return straight * straight.new_tensor([fx, fy]) + straight.new_tensor([cx, cy])

    def _warp(self, pixels: np.ndarray) -> np.ndarray:
        pycolmap = import_pycolmap()
        bitmap, _ = pycolmap.undistort_image(
            pycolmap.UndistortCameraOptions(),
            pycolmap.Bitmap.from_array(np.ascontiguousarray(pixels)),
            _to_colmap(self.camera),
        )
        warped = np.asarray(bitmap.to_array())
        return warped[..., 0] if warped.ndim > pixels.ndim else warped


def straighten(scene: Scene) -> tuple[Scene, dict[int, Undistortion]]:
    """Replace every camera by a PINHOLE one, and move the observations along.

    Args:
        scene: Any scene; it is not changed.

    Returns:
        The scene as its undistorted pictures show it, and how to make these for each camera id that
        has distortion. Pictures of other cameras stay as they are.

    Raises:
        ReconstructionError: If pycolmap is missing, or a camera's distortion cannot be undone.
    """
    undistortions = {
        camera.camera_id: Undistortion(camera=camera, pinhole=_pinhole(camera))
        for camera in scene.cameras
        if _has_distortion(camera)
    }
    cameras = tuple(
        undistortions[camera.camera_id].pinhole
        if camera.camera_id in undistortions
        else _as_pinhole(camera)
        for camera in scene.cameras
    )
    points = scene.points
    xy = points.obs_xy.double().clone()
    camera_of_image = torch.tensor([image.camera_id for image in scene.images], dtype=torch.int64)
    camera_of_obs = camera_of_image[points.obs_image]
    for camera_id, undistortion in undistortions.items():
        is_mine = camera_of_obs == camera_id
        if bool(is_mine.any()):
            xy[is_mine] = undistortion.pixels(xy[is_mine])
    straight = dataclasses.replace(
        scene, cameras=cameras, points=dataclasses.replace(points, obs_xy=xy)
    )
    return straight, undistortions


def _has_distortion(camera: Camera) -> bool:
    return any(value for name, value in camera.named_params.items() if name not in _PERSPECTIVE)


def _as_pinhole(camera: Camera) -> Camera:
    """Return a camera without distortion as PINHOLE."""
    matrix = camera.intrinsics
    params = tuple(float(matrix[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return dataclasses.replace(camera, model="PINHOLE", params=params)


def _pinhole(camera: Camera) -> Camera:
    pycolmap = import_pycolmap()
    twin = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), _to_colmap(camera))
    params = tuple(float(value) for value in twin.params)
    if len(params) != len(PARAM_NAMES["PINHOLE"]) or not np.isfinite(params).all():
        raise ReconstructionError(
            f"Camera {camera.camera_id} ({camera.model}, {camera.params}) has no pinhole twin: its "
            "distortion is not plausible."
        )
    return Camera(
        camera_id=camera.camera_id,
        model="PINHOLE",
        width=twin.width,
        height=twin.height,
        params=params,
    )


def _to_colmap(camera: Camera) -> Any:
    return import_pycolmap().Camera(
        model=camera.model, width=camera.width, height=camera.height, params=list(camera.params)
    )
