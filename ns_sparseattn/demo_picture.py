# SPDX-License-Identifier: Apache-2.0
"""A picture of a scene, points and cameras, from above and from the side.

Axes: ``P`` points, ``C`` cameras.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .geometry import camera_centers, invert_rigid, transform_points
from .scene.types import Scene

_VIEWS = {"from above": (0, 2), "from the side": (0, 1)}
"""Axes of the world that go across and up the paper; y points down and z away."""
_SHOWN_SHARE = 0.96
"""Share of the points, along each axis, that the picture must hold; the rest may lie outside."""
_MAX_POINTS = 60_000
_CAMERA_SHARE = 0.06
"""Length of a drawn camera, share of the picture."""


def draw_scene(scene: Scene, path: Path) -> None:
    """Write a picture of a levelled scene.

    Args:
        scene: Its up is -y.
        path: File to write, ``.png``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = scene.points.xyz
    keep = torch.linspace(0, len(points) - 1, min(len(points), _MAX_POINTS)).long()
    points, colours = points[keep], scene.points.rgb[keep].double() / 255.0
    poses = torch.stack([image.cam_from_world for image in scene.images])
    low, high = _bounds(points, camera_centers(poses))
    figure = Figure(figsize=(12.0, 6.0), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    side = float((high - low).max()) / 2 * 1.05
    middle = (high + low) / 2
    frusta = [
        _frustum(scene, index, 2 * side * _CAMERA_SHARE) for index in range(len(scene.images))
    ]
    for axes, (title, (across, up)) in zip(figure.subplots(1, 2), _VIEWS.items(), strict=True):
        # Far ones first, so that near ones cover them.
        order = points[:, 3 - across - up].argsort(descending=title == "from above")
        if title == "from the side":
            order = order.flip(0)
        axes.scatter(
            points[order, across].numpy(),
            points[order, up].numpy(),
            c=colours[order].numpy(),
            s=1.0,
            linewidths=0,
        )
        for frustum in frusta:
            for corner in range(1, 5):
                lines = frustum[[0, corner, corner % 4 + 1]]
                axes.plot(lines[:, across], lines[:, up], color="tab:orange", linewidth=0.8)
        axes.set_xlim(float(middle[across]) - side, float(middle[across]) + side)
        axes.set_ylim(float(middle[up]) - side, float(middle[up]) + side)
        if title == "from the side":
            axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_title(title)
    figure.suptitle(f"{len(scene.images)} cameras, {len(scene.points)} points")
    figure.savefig(path, dpi=100)


def _bounds(
    points: Tensor,  # [P, 3]
    centers: Tensor,  # [C, 3]
) -> tuple[Tensor, Tensor]:
    """Return the corners of a box that holds all cameras and most points, ``[3]`` each."""
    low, high = centers.amin(0), centers.amax(0)
    if len(points):
        tail = (1.0 - _SHOWN_SHARE) / 2
        ordered = points.sort(0).values
        last = len(points) - 1
        low = torch.minimum(low, ordered[round(tail * last)])
        high = torch.maximum(high, ordered[round((1.0 - tail) * last)])
    # One camera without points would be a box of no size.
    return low, torch.maximum(high, low + 1e-6)


def _frustum(scene: Scene, index: int, length: float) -> Tensor:
    """Return the centre of an image's camera and its four corners in the world, ``[5, 3]``."""
    image = scene.images[index]
    camera = next(c for c in scene.cameras if c.camera_id == image.camera_id)
    width, height = camera.width, camera.height
    corners = torch.tensor(
        [[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=torch.float64
    )
    rays = corners @ torch.linalg.inv(camera.intrinsics).T * length
    in_cam = torch.cat([torch.zeros(1, 3, dtype=torch.float64), rays])
    return transform_points(invert_rigid(image.cam_from_world), in_cam)
