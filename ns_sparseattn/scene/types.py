# SPDX-License-Identifier: Apache-2.0
"""A reconstructed scene as frozen values: cameras, posed images, points with their observations.

Everything is in original pixels (the upright photos') and in one world frame. Tensors are on the
CPU; poses and points are float64, because bundle adjustment and COLMAP work in doubles.

Axes: ``P`` points, ``O`` observations.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import check_tensor

CameraModel = Literal["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "OPENCV"]

PARAM_NAMES: dict[CameraModel, tuple[str, ...]] = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
}
"""COLMAP's parameter order of each camera model that is written."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A physical camera, shared by the images that it took."""

    camera_id: int
    """From 1 on."""
    model: CameraModel
    width: int
    height: int
    params: tuple[float, ...]
    """In the order of `PARAM_NAMES`, original pixels."""

    def __post_init__(self) -> None:
        expected = PARAM_NAMES[self.model]
        if len(self.params) != len(expected):
            raise ValueError(
                f"`params` of a {self.model} camera must be {expected}, got {self.params}."
            )

    @property
    def named_params(self) -> dict[str, float]:
        """The parameters by name."""
        return dict(zip(PARAM_NAMES[self.model], self.params, strict=True))

    @property
    def intrinsics(self) -> Tensor:
        """``[3, 3]`` float64, without the distortion."""
        named = self.named_params
        fx, fy = named.get("fx", named.get("f", 0.0)), named.get("fy", named.get("f", 0.0))
        return torch.tensor(
            [[fx, 0.0, named["cx"]], [0.0, fy, named["cy"]], [0.0, 0.0, 1.0]], dtype=torch.float64
        )


@dataclass(frozen=True, kw_only=True)
class PosedImage:
    """One photo with its pose."""

    image_id: int
    """From 1 on, in the order of the frames."""
    name: str
    """The frame's name."""
    camera_id: int
    cam_from_world: Tensor  # [3, 4] float64


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points with colour, error and tracks. Observations are sorted by point, then by image."""

    xyz: Tensor  # [P, 3] float64
    rgb: Tensor  # [P, 3] uint8
    error: Tensor  # [P] float64
    """Mean reprojection error over the track, original pixels."""
    obs_point: Tensor  # [O] int64
    """Index of the point that each observation belongs to."""
    obs_image: Tensor  # [O] int64
    """Index into `Scene.images` (not an image id)."""
    obs_xy: Tensor  # [O, 2] float64
    """Original pixels."""

    def __post_init__(self) -> None:
        check_tensor("xyz", self.xyz, ("P", 3), is_floating=True)
        num_points = self.xyz.shape[0]
        check_tensor("rgb", self.rgb, (num_points, 3), is_floating=False)
        check_tensor("error", self.error, (num_points,), is_floating=True)
        check_tensor("obs_point", self.obs_point, ("O",), is_floating=False)
        num_observations = self.obs_point.shape[0]
        check_tensor("obs_image", self.obs_image, (num_observations,), is_floating=False)
        check_tensor("obs_xy", self.obs_xy, (num_observations, 2), is_floating=True)

    def __len__(self) -> int:
        return int(self.xyz.shape[0])

    @property
    def track_length(self) -> Tensor:
        """Number of observations of each point, ``[P]`` int64."""
        return torch.bincount(self.obs_point, minlength=len(self))


@dataclass(frozen=True, kw_only=True)
class ImageSummary:
    """What is known about one image's part in the scene."""

    name: str
    num_points: int
    """Points observed in it."""
    median_confidence: float
    mean_error_px: float | None
    """Mean reprojection error of its observations; ``None`` without any."""
    notes: tuple[str, ...] = ()
    """Sentences about what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Cameras, posed images and points in one world frame."""

    cameras: tuple[Camera, ...]
    images: tuple[PosedImage, ...]
    points: Points
    summaries: tuple[ImageSummary, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """Sentences that the user should read: what could not be trusted, and what was done instead."""

    def __post_init__(self) -> None:
        camera_ids = {camera.camera_id for camera in self.cameras}
        unknown = [image.name for image in self.images if image.camera_id not in camera_ids]
        if unknown:
            raise ValueError(
                f"`images` must refer to cameras of the scene; these do not: {unknown[:5]}."
            )
        repeated = [
            name
            for name, count in Counter(image.name for image in self.images).items()
            if count > 1
        ]
        if repeated:
            raise ValueError(f"`images` must have unique names, got {repeated[:5]} more than once.")

    def camera_of(self, image: PosedImage) -> Camera:
        """Return the camera that took an image."""
        return next(camera for camera in self.cameras if camera.camera_id == image.camera_id)
