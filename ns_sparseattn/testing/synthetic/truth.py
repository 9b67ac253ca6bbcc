# SPDX-License-Identifier: Apache-2.0
"""The true cameras of a synthetic scene, as a `Scene` without points."""

from __future__ import annotations

import torch

from ...frames.types import Frames
from ...scene.types import Camera, Points, PosedImage, Scene
from .scenes import SyntheticScene


def true_scene(synthetic: SyntheticScene, frames: Frames) -> Scene:
    """Return one PINHOLE camera per size and focal length, and the exact pose of each frame."""
    cameras: dict[tuple[float, ...], Camera] = {}
    images = []
    for index, name in enumerate(frames.names):
        view = synthetic.view(name)
        matrix = view.intrinsics
        params = tuple(float(matrix[r, c]) for r, c in ((0, 0), (1, 1), (0, 2), (1, 2)))
        camera = cameras.setdefault(
            (*view.size, *params),
            Camera(
                camera_id=len(cameras) + 1,
                model="PINHOLE",
                width=view.size[0],
                height=view.size[1],
                params=params,
            ),
        )
        images.append(
            PosedImage(
                image_id=index + 1,
                name=name,
                camera_id=camera.camera_id,
                cam_from_world=view.cam_from_world,
            )
        )
    return Scene(cameras=tuple(cameras.values()), images=tuple(images), points=no_points())


def no_points() -> Points:
    """Return an empty set of points."""
    none = torch.zeros(0, dtype=torch.int64)
    return Points(
        xyz=torch.zeros(0, 3, dtype=torch.float64),
        rgb=torch.zeros(0, 3, dtype=torch.uint8),
        error=torch.zeros(0, dtype=torch.float64),
        obs_point=none,
        obs_image=none,
        obs_xy=torch.zeros(0, 2, dtype=torch.float64),
    )
