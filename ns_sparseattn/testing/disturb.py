# SPDX-License-Identifier: Apache-2.0
"""Disturb true cameras in a seeded way: what a prediction that is off looks like."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..geometry import camera_centers
from ..scene.types import Camera, Scene


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """How far cameras are moved."""

    rotation_deg: float = 3.0
    """Every camera turns by this about an axis of its own, degrees."""
    position_share: float = 0.05
    """Every centre moves by this share of the scene's extent, in a direction of its own."""
    focal_factor: float = 1.1
    """Focal lengths are multiplied by this. Principal points move to the middle of the photos and
    distortion is forgotten, whatever they were."""
    wrong_share: float = 0.0
    """Share of the images that are placed wrongly altogether: turned by 30 to 180 degrees and
    moved to a place half to one extent from the middle. At least one image, if above zero."""


NEAR = Disturbance()
"""3 degrees, 5 per cent of the extent, 10 per cent of the focal length."""

SOME_WRONG = Disturbance(wrong_share=0.1)
"""The same, and a tenth of the images wrong altogether."""

USELESS = Disturbance(wrong_share=1.0, focal_factor=1.5)
"""No image is where it belongs."""


def disturb(scene: Scene, disturbance: Disturbance, *, seed: int) -> tuple[Scene, tuple[str, ...]]:
    """Disturb the cameras of a scene.

    Args:
        scene: True cameras and poses. Points are kept as they are.
        disturbance: How far.
        seed: Same seed, same result.

    Returns:
        The disturbed scene, and the names of the images that were placed wrongly altogether.
    """
    generator = np.random.default_rng(seed)
    num_images = len(scene.images)
    poses = torch.stack([image.cam_from_world for image in scene.images])
    centers = camera_centers(poses).numpy()
    extent = float(np.linalg.norm(centers[:, None] - centers[None], axis=-1).max())
    num_wrong = round(disturbance.wrong_share * num_images)
    if disturbance.wrong_share > 0:
        num_wrong = max(num_wrong, 1)
    wrong = set(generator.choice(num_images, num_wrong, replace=False).tolist())
    images = []
    for index, image in enumerate(scene.images):
        axis, direction = _direction(generator), _direction(generator)
        degrees = disturbance.rotation_deg
        center = centers[index] + disturbance.position_share * extent * direction
        if index in wrong:
            degrees = float(generator.uniform(30.0, 180.0))
            center = centers.mean(0) + extent * generator.uniform(0.5, 1.0) * direction
        rotation = rotation_about(axis, degrees) @ image.cam_from_world[:, :3].numpy()
        pose = np.column_stack([rotation, -rotation @ center])
        images.append(replace(image, cam_from_world=torch.from_numpy(pose)))
    cameras = tuple(_disturb_camera(camera, disturbance.focal_factor) for camera in scene.cameras)
    names = tuple(scene.images[index].name for index in sorted(wrong))
    return replace(scene, images=tuple(images), cameras=cameras), names


def rotation_about(axis: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Return the rotation ``[3, 3]`` about a unit axis, by Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def _direction(generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw a unit vector, uniform on the sphere."""
    vector = generator.normal(size=3)
    return vector / np.linalg.norm(vector)


def _disturb_camera(camera: Camera, focal_factor: float) -> Camera:
    """Scale the focal lengths, and forget principal point and distortion, as networks do."""
    forgotten = {"cx": camera.width / 2.0, "cy": camera.height / 2.0}
    params = tuple(
        value * focal_factor if name in ("f", "fx", "fy") else forgotten.get(name, 0.0)
        for name, value in camera.named_params.items()
    )
    return replace(camera, params=params)
