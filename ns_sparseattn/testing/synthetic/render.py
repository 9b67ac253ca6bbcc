# SPDX-License-Identifier: Apache-2.0
"""Cast rays into a list of shapes: exact depth, and pictures with Lambert shading and soft shadows.

Axes: ``R`` rays, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry import camera_centers, pixel_centers, unproject
from .shapes import Shape, Vector
from .textures import Texture

_SUBSAMPLES = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
_SHADOW_BIAS = 1e-3
"""Shadow rays start this far off the surface, metres: float32 cannot tell it from the surface itself otherwise."""


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A shape with its texture."""

    shape: Shape
    texture: Texture
    casts_shadow: bool = True


@dataclass(frozen=True, kw_only=True)
class Light:
    """A small square lamp under the ceiling."""

    position: Vector
    strength: float
    """Irradiance at one metre."""
    half_size: float = 0.25
    """Half its side, metres; larger lamps make softer shadows."""


def cast_depth(
    solids: tuple[Solid, ...],
    pixels: Tensor,  # [..., 2]
    intrinsics: Tensor,  # [3, 3]
    cam_from_world: Tensor,  # [3, 4]
) -> Tensor:
    """Return the exact z-depth at pixels, ``[...]`` float64; infinity where the ray meets nothing."""
    origin, direction = _rays(pixels.reshape(-1, 2).double(), intrinsics, cam_from_world)
    depth, _ = _first_hit(solids, origin, direction)
    return depth.reshape(pixels.shape[:-1])


def render(
    solids: tuple[Solid, ...],
    lights: tuple[Light, ...],
    size: tuple[int, int],
    intrinsics: Tensor,  # [3, 3]
    cam_from_world: Tensor,  # [3, 4]
    *,
    ambient: float,
) -> Tensor:
    """Render a photo with four samples a pixel.

    Args:
        solids: What there is to see.
        lights: Lamps.
        size: Width and height.
        intrinsics: Of the photo.
        cam_from_world: Its pose.
        ambient: Light that comes from everywhere.

    Returns:
        sRGB ``[3, H, W]`` uint8.
    """
    width, height = size
    centers = pixel_centers(height, width).reshape(-1, 2)
    total = torch.zeros(height * width, 3)
    for offset in _SUBSAMPLES:
        pixels = centers + centers.new_tensor(offset)
        origin, direction = _rays(pixels, intrinsics, cam_from_world)
        shaded = _shade(
            solids, lights, origin.float(), direction.float(), float(intrinsics[0, 0]), offset, ambient
        )
        # Each sample is clipped by itself, or a bright one would smear over its whole pixel.
        total += shaded.clamp(max=1.0)
    encoded = (total / len(_SUBSAMPLES)) ** (1.0 / 2.2)
    image = (encoded * 255.0).round().clamp(0, 255).to(torch.uint8)
    return image.reshape(height, width, 3).permute(2, 0, 1).contiguous()


def _rays(pixels: Tensor, intrinsics: Tensor, cam_from_world: Tensor) -> tuple[Tensor, Tensor]:
    """Return the origin ``[3]`` and directions ``[R, 3]`` of camera depth 1 in the world, float64."""
    in_cam = unproject(pixels, torch.ones_like(pixels[:, 0]), intrinsics.double())
    rotation = cam_from_world.double()[:, :3]
    return camera_centers(cam_from_world.double()), in_cam @ rotation


def _first_hit(solids: tuple[Solid, ...], origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return t ``[R]`` of the first hit and the index of the solid, -1 without any."""
    nearest = torch.full_like(direction[:, 0], math.inf)
    index = torch.full(nearest.shape, -1, dtype=torch.int64)
    for i, solid in enumerate(solids):
        t = solid.shape.intersect(origin, direction)
        is_nearer = t < nearest
        nearest = torch.where(is_nearer, t, nearest)
        index[is_nearer] = i
    return nearest, index


def _shade(
    solids: tuple[Solid, ...],
    lights: tuple[Light, ...],
    origin: Tensor,
    direction: Tensor,
    focal: float,
    offset: tuple[float, float],
    ambient: float,
) -> Tensor:
    """Return the linear RGB ``[R, 3]`` that rays see; black where they meet nothing."""
    t, index = _first_hit(solids, origin, direction)
    rgb = torch.zeros(t.shape[0], 3)
    normals = torch.zeros_like(rgb)
    points = origin + torch.where(index >= 0, t, 0.0)[:, None] * direction
    length = torch.linalg.vector_norm(direction, dim=-1)
    for i, solid in enumerate(solids):
        members = (index == i).nonzero().flatten()
        if members.numel():
            normal, uv = solid.shape.surface(points[members])
            cosine = (normal * direction[members]).sum(-1).abs() / length[members]
            footprint = 0.5 * t[members] / focal / cosine.clamp(min=0.1).sqrt()
            rgb[members] = solid.texture.sample(uv, footprint)
            normals[members] = normal
    return rgb * (ambient + _irradiance(solids, lights, points, normals, offset))[:, None]


def _irradiance(
    solids: tuple[Solid, ...],
    lights: tuple[Light, ...],
    points: Tensor,
    normals: Tensor,
    offset: tuple[float, float],
) -> Tensor:
    """Return the light that arrives from the lamps, ``[R]``; each subsample looks at another part of a lamp."""
    total = torch.zeros(points.shape[0])
    for light in lights:
        x, y, z = light.position
        spread = 4.0 * light.half_size
        lamp = points.new_tensor([x + spread * offset[0], y, z + spread * offset[1]])
        to_lamp = lamp - points
        distance = torch.linalg.vector_norm(to_lamp, dim=-1)
        cosine = (normals * to_lamp).sum(-1) / distance
        lit = (cosine > 0).nonzero().flatten()
        start = points[lit] + _SHADOW_BIAS * normals[lit]
        is_dark = torch.zeros(lit.shape[0], dtype=torch.bool)
        for solid in solids:
            if solid.casts_shadow:
                is_dark |= solid.shape.intersect(start, to_lamp[lit]) < 1.0
        # Falls with the distance, not its square: a long lamp, and walls that throw light back.
        strength = light.strength * cosine[lit] / distance[lit]
        total[lit] += torch.where(is_dark, 0.0, strength)
    return total
