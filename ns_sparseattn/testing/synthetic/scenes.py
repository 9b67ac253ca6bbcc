# SPDX-License-Identifier: Apache-2.0
"""Scenes in closed form with their cameras: a furnished room, and a single plane for exact tests.

Axes: ``F`` frames, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...frames.pixel_map import Size
from ...frames.types import Frame
from ...geometry import pixel_centers
from .render import Light, Solid, cast_depth, render
from .shapes import Box, Pillar, Plane, Shape, Sphere, Vector
from .textures import Texture, TextureKind


@dataclass(frozen=True, kw_only=True)
class View:
    """One camera of a synthetic scene; everything in original pixels."""

    name: str
    size: Size
    """Width and height."""
    intrinsics: Tensor  # [3, 3] float64
    cam_from_world: Tensor  # [3, 4] float64


@dataclass(frozen=True, kw_only=True)
class SyntheticScene:
    """Solids, lamps and cameras. Nothing is rendered before it is asked for."""

    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    ambient: float
    views: tuple[View, ...]
    _photos: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.views)

    @property
    def cam_from_world(self) -> Tensor:
        """``[F, 3, 4]`` float64."""
        return torch.stack([view.cam_from_world for view in self.views])

    @property
    def intrinsics(self) -> Tensor:
        """``[F, 3, 3]`` float64, original pixels."""
        return torch.stack([view.intrinsics for view in self.views])

    def view(self, name: str) -> View:
        """Return the view of a name."""
        return next(view for view in self.views if view.name == name)

    def photo(self, view: View) -> Tensor:
        """Return a view's photo, ``[3, H, W]`` uint8 sRGB; rendered once and kept."""
        if view.name not in self._photos:
            self._photos[view.name] = render(
                self.solids,
                self.lights,
                view.size,
                view.intrinsics,
                view.cam_from_world,
                ambient=self.ambient,
            )
        return self._photos[view.name]

    def images(self) -> Tensor:
        """Return all photos, ``[F, 3, H, W]`` uint8; they must be of one size."""
        return torch.stack([self.photo(view) for view in self.views])

    def depth(self) -> Tensor:
        """Return exact z-depth, ``[F, H, W]`` float64; the views must be of one size."""
        return torch.stack(
            [self.depth_at(view, pixel_centers(view.size[1], view.size[0])) for view in self.views]
        )

    def depth_at(
        self,
        view: View,
        pixels: Tensor,  # [..., 2]
    ) -> Tensor:
        """Return exact z-depth at original pixels, ``[...]`` float64; infinity for nothing."""
        return cast_depth(self.solids, pixels, view.intrinsics, view.cam_from_world)

    def read_rgb(self, frame: Frame) -> Tensor:
        """Return a frame's photo as `ns_sparseattn.frames.read_rgb` would, ``[H, W, 3]`` uint8."""
        return self.photo(self.view(frame.name)).permute(1, 2, 0)


def look_at(center: Vector, target: Vector, *, roll_deg: float = 0.0) -> Tensor:
    """Return the pose ``[3, 4]`` float64 of a camera that looks at a target; y is down."""
    position = torch.tensor(center, dtype=torch.float64)
    forward = torch.nn.functional.normalize(position.new_tensor(target) - position, dim=0)
    down = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    right = torch.nn.functional.normalize(torch.linalg.cross(down, forward), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    cos, sin = math.cos(math.radians(roll_deg)), math.sin(math.radians(roll_deg))
    roll = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    rotation = roll @ rotation
    return torch.cat([rotation, -(rotation @ position)[:, None]], dim=1)


def orbit(
    num_views: int,
    *,
    sizes: Sequence[Size],
    fov_deg: float,
    step_deg: float,
    radius: float,
    target: Vector,
    height: float,
    bob: float,
) -> tuple[View, ...]:
    """Place cameras on an arc that look at its middle.

    Args:
        num_views: Number of cameras.
        sizes: Width and height; repeated in turn if there are fewer than views.
        fov_deg: Field of view across the longer side, degrees.
        step_deg: Angle between neighbours, degrees.
        radius: Of the arc, metres.
        target: Where all look.
        height: Of the arc above the target, metres.
        bob: How far cameras rise and sink along the arc, metres; keeps them off a common plane.

    Returns:
        The views, named ``view_000.jpg`` and so on.
    """
    views = []
    for index in range(num_views):
        angle = math.radians((index - (num_views - 1) / 2.0) * step_deg)
        center = (
            target[0] + radius * math.sin(angle),
            target[1] - height + bob * math.sin(2.4 * index),
            target[2] - radius * math.cos(angle),
        )
        width, length = sizes[index % len(sizes)]
        focal = max(width, length) / (2.0 * math.tan(math.radians(fov_deg) / 2.0))
        intrinsics = torch.tensor(
            [[focal, 0.0, width / 2.0], [0.0, focal, length / 2.0], [0.0, 0.0, 1.0]],
            dtype=torch.float64,
        )
        views.append(
            View(
                name=f"view_{index:03d}.jpg",
                size=(width, length),
                intrinsics=intrinsics,
                cam_from_world=look_at(center, target),
            )
        )
    return tuple(views)


def make_room(
    *,
    num_views: int = 12,
    size: Size | Sequence[Size] = (640, 480),
    step_deg: float = 7.0,
    fov_deg: float = 65.0,
    seed: int = 0,
) -> SyntheticScene:
    """Make a furnished room, seen from an arc of cameras.

    Args:
        num_views: Number of cameras.
        size: Width and height of all views, or of each view in turn.
        step_deg: Angle between neighbours, degrees; with 7, each photo shows nearly all of its
            neighbour.
        fov_deg: Field of view across the longer side, degrees.
        seed: Of the textures.

    Returns:
        The scene, not yet rendered.
    """
    shapes: tuple[tuple[Shape, TextureKind, float, int], ...] = (
        # Floor, ceiling and four walls.
        (Plane(point=(0.0, 1.5, 0.0), normal=(0.0, -1.0, 0.0)), "planks", 7.0, 2048),
        (Plane(point=(0.0, -1.5, 0.0), normal=(0.0, 1.0, 0.0)), "plaster", 7.0, 1024),
        (Plane(point=(0.0, 0.0, 3.4), normal=(0.0, 0.0, -1.0)), "mural", 7.0, 2048),
        (Plane(point=(0.0, 0.0, -3.4), normal=(0.0, 0.0, 1.0)), "bricks", 7.0, 1024),
        (Plane(point=(3.4, 0.0, 0.0), normal=(-1.0, 0.0, 0.0)), "bricks", 7.0, 2048),
        (Plane(point=(-3.4, 0.0, 0.0), normal=(1.0, 0.0, 0.0)), "mural", 7.0, 2048),
        # A low stage and what stands on it.
        (Box(center=(0.0, 1.39, 0.0), half=(1.0, 0.11, 0.8), yaw_deg=12.0), "terrazzo", 6.0, 2048),
        (Box(center=(-0.42, 0.98, 0.1), half=(0.27, 0.3, 0.27), yaw_deg=31.0), "mural", 1.8, 1024),
        (Sphere(center=(-0.42, 0.41, 0.1), radius=0.27), "marble", 1.3, 512),
        (Sphere(center=(0.42, 0.94, -0.25), radius=0.34), "terrazzo", 1.6, 512),
        (Box(center=(0.45, 0.82, 0.42), half=(0.2, 0.46, 0.2), yaw_deg=-20.0), "bricks", 2.8, 1024),
        # Farther back.
        (Box(center=(-2.3, 1.0, 2.1), half=(0.5, 0.5, 0.45), yaw_deg=-28.0), "planks", 3.0, 1024),
        (Pillar(center=(1.9, 0.0, 1.9), radius=0.27, half_height=1.5), "marble", 3.2, 1024),
        (Pillar(center=(-1.25, 0.0, 2.5), radius=0.2, half_height=1.5), "terrazzo", 3.2, 1024),
    )
    num_enclosing = 6
    solids = tuple(
        Solid(
            shape=shape,
            texture=Texture(kind=kind, seed=seed + index, metres=metres, texels=texels),
            casts_shadow=index >= num_enclosing,
        )
        for index, (shape, kind, metres, texels) in enumerate(shapes)
    )
    lights = (
        Light(position=(-1.2, -1.3, -1.3), strength=1.35, half_size=0.3),
        Light(position=(1.7, -1.3, 0.2), strength=0.8, half_size=0.3),
    )
    views = orbit(
        num_views,
        sizes=_sizes(size),
        fov_deg=fov_deg,
        step_deg=step_deg,
        radius=2.6,
        target=(0.0, 0.55, 0.1),
        height=0.95,
        bob=0.12,
    )
    return SyntheticScene(solids=solids, lights=lights, ambient=0.28, views=views)


def make_plane(
    *,
    num_views: int = 6,
    size: Size | Sequence[Size] = (640, 480),
    step_deg: float = 6.0,
    fov_deg: float = 50.0,
    seed: int = 0,
) -> SyntheticScene:
    """Make one slanted textured plane, seen from an arc of cameras.

    Inverse depth is linear in the pixels of a plane, so that interpolating it is exact: points of
    this scene are known to rounding error everywhere.
    """
    texture = Texture(kind="mural", seed=seed, metres=6.0, texels=2048)
    plane = Plane(point=(0.0, 0.0, 0.3), normal=(0.25, 0.35, -1.0))
    views = orbit(
        num_views,
        sizes=_sizes(size),
        fov_deg=fov_deg,
        step_deg=step_deg,
        radius=2.5,
        target=(0.0, 0.0, 0.3),
        height=0.2,
        bob=0.1,
    )
    return SyntheticScene(
        solids=(Solid(shape=plane, texture=texture, casts_shadow=False),),
        lights=(Light(position=(0.5, -2.0, -2.5), strength=1.8),),
        ambient=0.35,
        views=views,
    )


def _sizes(size: Size | Sequence[Size]) -> Sequence[Size]:
    """Return a list of sizes from one or many."""
    first = size[0]
    return [size] if isinstance(first, int) else size  # type: ignore[list-item]
