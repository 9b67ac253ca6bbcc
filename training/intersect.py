# SPDX-License-Identifier: Apache-2.0
"""Where rays first meet boxes, ellipsoids, cylinders, the shell and waves of ground.

Rays have camera depth 1, so the ray parameter is the z-depth. In the frame of an object that is
scaled to unit size, the direction of the ray through a pixel is a sum of a term of the column and a
term of the row: one addition per pixel and axis brings all rays of a view into that frame.

Cameras are outside of all objects and inside of the shell.

Axes: ``N`` views, ``K`` objects, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.world import Objects, Slots, Surroundings

_TINY = 1e-12
_NEAR_M = 0.02
"""Nothing is seen nearer than this, metres."""
_MARCH_STEPS = 16
_REFINE_STEPS = 3
_MARCH_TOLERANCE = 2e-3
"""Largest distance from the ground of a point found on it, as a share of its depth."""


@dataclass(frozen=True, kw_only=True)
class Rays:
    """Rays through a grid of points of each image."""

    columns: Tensor  # [N, W]
    """x of camera directions with z = 1."""
    rows: Tensor  # [N, H]
    """y likewise."""
    cam_from_world: Tensor  # [N, 3, 4]

    @property
    def origins(self) -> Tensor:
        """Camera centres, ``[N, 3]``."""
        rotation, translation = self.cam_from_world[..., :3], self.cam_from_world[..., 3:]
        return -(rotation.transpose(-1, -2) @ translation)[..., 0]

    def directions(
        self,
        frame_from_world: Tensor,  # [N, 3, 3]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the directions in a linear frame, three times ``[N, H, W]``."""
        matrix = frame_from_world @ self.cam_from_world[..., :3].transpose(-1, -2)
        by_column = matrix[:, :, 0:1] * self.columns[:, None] + matrix[:, :, 2:3]  # [N, 3, W]
        by_row = matrix[:, :, 1:2] * self.rows[:, None]  # [N, 3, H]
        x, y, z = (by_column[:, i, None, :] + by_row[:, i, :, None] for i in range(3))
        return x, y, z


def first_hits(
    rays: Rays, objects: Objects, surroundings: Surroundings, slots: Slots
) -> tuple[Tensor, Tensor]:
    """Return z-depth and slot of what each ray meets first, ``[N, H, W]`` each.

    Objects and surroundings are given for every view. The shell is met by every ray; the sky is its
    slot at the depth of the shell.
    """
    origins = rays.origins
    depth = _hit_shell(rays, origins, surroundings)
    slot = torch.full_like(depth, slots.shell, dtype=torch.int16)
    has_terrain = surroundings.has_terrain.nonzero().flatten()
    if len(has_terrain):
        part = Rays(
            columns=rays.columns[has_terrain],
            rows=rays.rows[has_terrain],
            cam_from_world=rays.cam_from_world[has_terrain],
        )
        ground = _hit_terrain(
            part, origins[has_terrain], surroundings.take(has_terrain), depth[has_terrain]
        )
        is_ground = ground < depth[has_terrain]
        slot[has_terrain] = torch.where(is_ground, slots.terrain, slot[has_terrain]).to(slot.dtype)
        depth[has_terrain] = torch.minimum(ground, depth[has_terrain])

    unit_from_world = objects.world_from_object.transpose(-1, -2) / objects.half[..., None]
    offset = origins[:, None] - objects.center
    unit_origins = (unit_from_world @ offset[..., None])[..., 0]  # [N, K, 3]
    for k in range(slots.objects):
        direction = rays.directions(unit_from_world[:, k])
        origin = unit_origins[:, k, :, None, None].unbind(1)
        if k < slots.boxes:
            t = _hit_box(origin, direction)
        elif k < slots.boxes + slots.ellipsoids:
            t = _hit_ellipsoid(origin, direction)
        else:
            t = _hit_cylinder(origin, direction, objects.taper[:, k, None, None])
        # An empty slot is infinitely far.
        t = t + torch.where(objects.is_there[:, k], 0.0, torch.inf)[:, None, None]
        is_nearer = t < depth
        depth = torch.minimum(t, depth)
        slot = slot.masked_fill(is_nearer, k)
    return depth, slot


Vector = tuple[Tensor, ...]


def _hit_box(origin: Vector, direction: Vector) -> Tensor:
    """Return where rays enter the cube from -1 to 1; infinity for those that miss."""
    enter = leave = None
    for o, d in zip(origin, direction, strict=True):
        inverse = _inverse(d)
        middle, reach = -o * inverse, inverse.abs_()
        first, last = middle - reach, middle + reach
        enter = first if enter is None else torch.maximum(enter, first)
        leave = last if leave is None else torch.minimum(leave, last)
    assert enter is not None
    assert leave is not None
    return torch.where((enter < leave) & (enter > _NEAR_M), enter, torch.inf)


def _hit_ellipsoid(origin: Vector, direction: Vector) -> Tensor:
    """Return where rays enter the unit ball."""
    a = sum_of_products(direction, direction)
    b = sum_of_products(origin, direction)
    c = sum_of_products(origin, origin) - 1.0
    discriminant = b * b - a * c
    # The root of a negative number is slow to take on some processors.
    t = (-b - discriminant.clamp(min=0.0).sqrt_()) / a
    return torch.where((discriminant > 0.0) & (t > _NEAR_M), t, torch.inf)


def _hit_cylinder(origin: Vector, direction: Vector, taper: Tensor) -> Tensor:
    """Return where rays enter the cylinder or cone from -1 to 1 with radius 1 at its foot.

    With taper ``s`` the radius at height ``z`` is ``1 - s (z + 1) / 2``.
    """
    ox, oy, oz = origin
    dx, dy, dz = direction
    slope = 0.5 * taper
    radius, shrink = 1.0 - slope * (oz + 1.0), slope * dz
    a = dx * dx + dy * dy - shrink * shrink
    b = ox * dx + oy * dy + radius * shrink
    c = ox * ox + oy * oy - radius * radius
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0.0).sqrt_()
    t = (-b - root) / torch.where(a.abs() < _TINY, _TINY, a)
    is_side = ((oz + t * dz).abs() < 1.0) & (t > _NEAR_M) & (discriminant > 0.0)
    side = torch.where(is_side, t, torch.inf)
    # Of the two caps, rays enter through the one that faces them.
    height = oz.sign()
    cap_t = (height - oz) / dz
    x, y = ox + cap_t * dx, oy + cap_t * dy
    cap_radius = 1.0 - slope * (height + 1.0)
    is_cap = (x * x + y * y < cap_radius * cap_radius) & (cap_t > _NEAR_M) & (oz.abs() > 1.0)
    return torch.where(is_cap, torch.minimum(cap_t, side), side)


def _inverse(direction: Tensor) -> Tensor:
    """Return reciprocals; of a ray parallel to a face a large one, whose products are finite."""
    return torch.where(direction.abs() < _TINY, _TINY, direction).reciprocal()


def sum_of_products(first: Vector, second: Vector) -> Tensor:
    """Return the dot product of vectors given by component."""
    (ax, ay, az), (bx, by, bz) = first, second
    return ax * bx + ay * by + az * bz


def _hit_shell(rays: Rays, origins: Tensor, surroundings: Surroundings) -> Tensor:
    """Return where rays leave the shell, finite everywhere."""
    scale = surroundings.shell_half.reciprocal()
    direction = rays.directions(torch.diag_embed(scale))
    offset = ((origins - surroundings.shell_center) * scale)[..., None, None].unbind(1)
    leave = None
    for o, d in zip(offset, direction, strict=True):
        inverse = _inverse(d)
        last = inverse.abs() - o * inverse
        leave = last if leave is None else torch.minimum(leave, last)
    assert leave is not None
    return leave


def _hit_terrain(rays: Rays, origins: Tensor, surroundings: Surroundings, limit: Tensor) -> Tensor:
    """Return where rays meet the waves, infinity where they do not before ``limit``.

    The height above the ground divided by the steepest possible approach is a safe step; what comes
    out lies on the ground within `_MARCH_TOLERANCE`, or is infinity.
    """
    identity = torch.eye(3, device=limit.device).expand(len(limit), 3, 3)
    dx, dy, dz = (d.flatten(1) for d in rays.directions(identity))
    ox, oy, oz = (o[:, None] for o in origins.unbind(-1))
    slope = (surroundings.wave_height * surroundings.wave_vector.norm(dim=-1)).sum(-1)[:, None]
    speed = (dx * dx + dy * dy).sqrt_() * slope - dz
    speed = speed.clamp_(min=_TINY)

    def above(t: Tensor) -> Tensor:
        return oz + t * dz - surroundings.wave_sum(ox + t * dx, oy + t * dy)

    t = torch.full_like(dx, _NEAR_M)
    far = limit.flatten(1)
    for _ in range(_MARCH_STEPS):
        t = torch.minimum(t + above(t) / speed, far)
    for _ in range(_REFINE_STEPS):
        # The true approach is about the ray's own descent: one secant step towards the surface.
        gap, ahead = above(t), above(t + 1e-3 * far)
        descent = ((gap - ahead) / (1e-3 * far)).clamp_(min=1e-3)
        t = torch.minimum((t + gap / descent).clamp_(min=_NEAR_M), far)
    is_ground = (above(t).abs() < _MARCH_TOLERANCE * t) & (t < far)
    return torch.where(is_ground, t, torch.inf).unflatten(1, limit.shape[1:])
