# SPDX-License-Identifier: Apache-2.0
"""Cast rays into a list of shapes: exact depth, and pictures with Lambert shading and soft shadows.

Axes: ``R`` rays, ``H`` rows, ``W`` columns.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ...geometry import camera_centers, pixel_centers, unproject
from .shapes import Shape, Vector
from .textures import Texture

_SUBSAMPLES = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
_TILE = 48
"""Side of the square of pixels that is rendered together: its arrays stay in the cache."""
_CULLING_MARGIN = 1e-3
"""Added to the angle under which a shape is seen, radians, against rounding."""
_SHADOW_BIAS = 1e-3
"""Shadow rays start this far off the surface, metres: float32 cannot tell it from the surface
itself otherwise."""


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
    """Return exact z-depth at pixels, ``[...]`` float64; infinity where a ray meets nothing."""
    depth = [
        _first_hit(solids, *_rays(chunk, intrinsics, cam_from_world))[0]
        for chunk in pixels.reshape(-1, 2).double().split(4 * _TILE * _TILE)
    ]
    return torch.cat(depth).reshape(pixels.shape[:-1])


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
    centers = pixel_centers(height, width)
    image = torch.empty(height, width, 3, dtype=torch.uint8)

    def render_tile(corner: tuple[int, int]) -> None:
        top, left = corner
        tile = centers[top : top + _TILE, left : left + _TILE]
        rows, columns = tile.shape[:2]
        pixels = tile.reshape(1, -1, 2) + tile.new_tensor(_SUBSAMPLES)[:, None]
        origin, direction = _rays(pixels.reshape(-1, 2), intrinsics, cam_from_world)
        offset = torch.tensor(_SUBSAMPLES).repeat_interleave(rows * columns, dim=0)
        focal = float(intrinsics[0, 0])
        rgb = _shade(solids, lights, origin.float(), direction.float(), focal, offset, ambient)
        # Each sample is clipped by itself, or a bright one would smear over its whole pixel.
        mean = rgb.clamp(max=1.0).reshape(len(_SUBSAMPLES), rows, columns, 3).mean(0)
        encoded = (mean ** (1.0 / 2.2) * 255.0).round().to(torch.uint8)
        image[top : top + rows, left : left + columns] = encoded

    corners = [(top, left) for top in range(0, height, _TILE) for left in range(0, width, _TILE)]
    # Tiles are too small for torch to share one among cores.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(render_tile, corners))
    return image.permute(2, 0, 1).contiguous()


def _rays(pixels: Tensor, intrinsics: Tensor, cam_from_world: Tensor) -> tuple[Tensor, Tensor]:
    """Return origin ``[3]`` and directions ``[R, 3]`` of camera depth 1, world, float64."""
    in_cam = unproject(pixels, torch.ones_like(pixels[:, 0]), intrinsics.double())
    rotation = cam_from_world.double()[:, :3]
    return camera_centers(cam_from_world.double()), in_cam @ rotation


def _first_hit(
    solids: tuple[Solid, ...], origin: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """Return t ``[R]`` of the first hit and the index of the solid, -1 without any."""
    nearest = torch.full_like(direction[:, 0], math.inf)
    index = torch.full(nearest.shape, -1, dtype=torch.int64)
    cone = _cone(direction)
    for i, solid in enumerate(solids):
        if not _is_in_cone(solid.shape, origin, cone):
            continue
        t = solid.shape.intersect(origin, direction)
        is_nearer = t < nearest
        nearest = torch.where(is_nearer, t, nearest)
        index[is_nearer] = i
    return nearest, index


def _cone(direction: Tensor) -> tuple[Tensor, float]:
    """Return axis ``[3]`` and half angle of a cone around directions ``[R, 3]``."""
    unit = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    axis = torch.nn.functional.normalize(unit.mean(0), dim=0)
    return axis, math.acos(max(-1.0, min(float((unit @ axis).min()), 1.0)))


def _is_in_cone(
    shape: Shape, apex: Tensor, cone: tuple[Tensor, float], *, spread: float = 0.0
) -> bool:
    """Return false if rays within `spread` of a cone pass the shape's ball by."""
    if shape.bounds is None:
        return True
    center, radius = shape.bounds[0], shape.bounds[1] + spread
    axis, half_angle = cone
    to_center = apex.new_tensor(center) - apex
    distance = float(to_center.norm())
    if distance <= radius:
        return True
    angle = math.acos(max(-1.0, min(1.0, float(to_center @ axis) / distance)))
    return angle <= half_angle + math.asin(radius / distance) + _CULLING_MARGIN


def _shade(
    solids: tuple[Solid, ...],
    lights: tuple[Light, ...],
    origin: Tensor,
    direction: Tensor,
    focal: float,
    offset: Tensor,  # [R, 2]
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
    offset: Tensor,  # [R, 2]
) -> Tensor:
    """Return the lamps' light ``[R]``; each subsample looks at another part of a lamp."""
    total = torch.zeros(points.shape[0])
    for light in lights:
        x, y, z = light.position
        spread = 4.0 * light.half_size
        lamp = points.new_tensor([x, y, z]).repeat(points.shape[0], 1)
        lamp[:, ::2] += spread * offset
        to_lamp = lamp - points
        distance = torch.linalg.vector_norm(to_lamp, dim=-1)
        cosine = (normals * to_lamp).sum(-1) / distance
        lit = (cosine > 0).nonzero().flatten()
        if not lit.numel():
            continue
        start = points[lit] + _SHADOW_BIAS * normals[lit]
        is_dark = torch.zeros(lit.shape[0], dtype=torch.bool)
        # Every ray to a part of the lamp runs within half the lamp's diagonal of one to its middle.
        middle = points.new_tensor(light.position)
        cone, diagonal = _cone(start - middle), math.sqrt(2.0) * light.half_size
        for solid in solids:
            if solid.casts_shadow and _is_in_cone(solid.shape, middle, cone, spread=diagonal):
                is_dark |= solid.shape.intersect(start, to_lamp[lit]) < 1.0
        # Falls with the distance, not its square: a long lamp, and walls that throw light back.
        strength = light.strength * cosine[lit] / distance[lit]
        total[lit] += torch.where(is_dark, 0.0, strength)
    return total
