# SPDX-License-Identifier: Apache-2.0
"""Draw the picture of the README: sample views on the left, the scene built from them on the right.

The views are rendered by the project, and so is the depth that the scene is built from: the picture
shows what scene building and export do with a good prediction, without needing published weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw
from torch import Tensor

from ns_sparseattn.geometry import invert_rigid, project, transform_points
from ns_sparseattn.options import SceneOptions
from ns_sparseattn.scene import Camera, Scene, build_scene
from ns_sparseattn.testing.synthetic import exact_prediction, look_at, make_frames, make_room

_SIZE = (960, 640)
_MARGIN = 8
_BACKGROUND = (18, 20, 24)
_FRUSTUM = (255, 176, 32)
_FRUSTUM_DEPTH = 0.28
"""Length of a drawn camera, metres."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Render the sample views, build their scene, draw both."""

    output: Path = Path("docs/images/scene.jpg")
    """Where the picture goes."""
    num_views: int = 16
    """Sample views."""

    def main(self) -> None:
        """Draw the picture."""
        room = make_room(num_views=self.num_views)
        frames = make_frames(room)
        scene = build_scene(
            exact_prediction(room, frames), frames, SceneOptions(), read_rgb=room.read_rgb
        )
        photos = [Image.fromarray(room.photo(v).permute(1, 2, 0).numpy()) for v in room.views]
        montage, drawing = _montage(photos), _draw(scene)
        picture = Image.new(
            "RGB", (montage.width + _MARGIN + drawing.width, _SIZE[1]), (255, 255, 255)
        )
        picture.paste(montage, (0, 0))
        picture.paste(drawing, (montage.width + _MARGIN, 0))
        self.output.parent.mkdir(parents=True, exist_ok=True)
        picture.save(self.output, quality=88)
        print(f"{self.output}: {len(scene.images)} cameras, {len(scene.points)} points.")


def _montage(photos: list[Image.Image]) -> Image.Image:
    """Put eight of the photos into two columns as high as the drawing."""
    height = (_SIZE[1] - 3 * _MARGIN) // 4
    width = height * photos[0].width // photos[0].height
    montage = Image.new("RGB", (2 * width + _MARGIN, _SIZE[1]), (255, 255, 255))
    for place, index in enumerate(np.linspace(0, len(photos) - 1, 8).round().astype(int)):
        corner = ((place % 2) * (width + _MARGIN), (place // 2) * (height + _MARGIN))
        montage.paste(photos[index].resize((width, height)), corner)
    return montage


def _draw(scene: Scene) -> Image.Image:
    """Draw points and cameras from behind and above the cameras."""
    cam_from_world = look_at((-3.6, -4.6, -5.4), (0.0, 0.6, 0.2))
    focal = 1.05 * _SIZE[0]
    intrinsics = torch.tensor(
        [[focal, 0.0, _SIZE[0] / 2], [0.0, focal, _SIZE[1] / 2], [0.0, 0.0, 1.0]],
        dtype=torch.float64,
    )
    pixels, depth = project(transform_points(cam_from_world, scene.points.xyz), intrinsics)
    canvas = torch.tensor(_BACKGROUND, dtype=torch.uint8).repeat(_SIZE[1], _SIZE[0], 1)
    # Far points first, so that near ones cover them.
    order = depth.argsort(descending=True)
    columns, rows = pixels[order].floor().long().unbind(-1)
    colours = scene.points.rgb[order]
    for shift_x, shift_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x, y = columns + shift_x, rows + shift_y
        inside = (x >= 0) & (x < _SIZE[0]) & (y >= 0) & (y < _SIZE[1]) & (depth[order] > 0)
        for index in torch.arange(len(order))[inside].split(20_000):
            canvas[y[index], x[index]] = colours[index]
    image = Image.fromarray(canvas.numpy())
    draw = ImageDraw.Draw(image)
    for posed in scene.images:
        corners = _frustum(scene.camera_of(posed), posed.cam_from_world)
        on_canvas, _ = project(transform_points(cam_from_world, corners), intrinsics)
        apex, *rim = [tuple(corner) for corner in on_canvas.tolist()]
        draw.line([*rim, rim[0]], fill=_FRUSTUM, width=2)
        for corner in rim:
            draw.line([apex, corner], fill=_FRUSTUM, width=1)
    return image


def _frustum(camera: Camera, cam_from_world: Tensor) -> Tensor:
    """Return the centre and the four corners of a camera in the world, ``[5, 3]``."""
    corners = torch.tensor(
        [[0, 0, 1], [camera.width, 0, 1], [camera.width, camera.height, 1], [0, camera.height, 1]],
        dtype=torch.float64,
    )
    rays = corners @ torch.linalg.inv(camera.intrinsics).T * _FRUSTUM_DEPTH
    in_cam = torch.cat([torch.zeros(1, 3, dtype=torch.float64), rays])
    return transform_points(invert_rigid(cam_from_world), in_cam)


if __name__ == "__main__":
    tyro.cli(Picture).main()
