# SPDX-License-Identifier: Apache-2.0
"""Closed-form shapes: where rays meet them, and which way their surface faces.

The world has y pointing down, as cameras do, in metres. A ray is ``origin + t * direction``;
directions need not have unit length, so with directions of camera depth 1 the parameter t is the
z-depth itself, exactly.

Axes: ``R`` rays, ``P`` points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Vector = tuple[float, float, float]

_PARALLEL = 1e-30
"""Stands in for a slope of zero: its inverse times zero is zero, not NaN."""


class Shape(Protocol):
    """What the renderer asks of a shape."""

    def intersect(self, origin: Tensor, direction: Tensor) -> Tensor:
        """Return t of the first hit of rays ``[R, 3]``, ``[R]``; infinity where there is none."""
        ...

    def surface(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit normals ``[P, 3]`` and texture coordinates ``[P, 2]`` at points.

        Texture coordinates are in metres; those of different faces do not overlap.
        """
        ...

    @property
    def bounds(self) -> tuple[Vector, float] | None:
        """Centre and radius of a ball that holds the shape; ``None`` if nothing does."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plane:
    """An endless plane."""

    point: Vector
    normal: Vector
    """Of any length."""

    def intersect(self, origin: Tensor, direction: Tensor) -> Tensor:
        """Return t of the first hit."""
        normal = origin.new_tensor(self.normal)
        distance = ((origin.new_tensor(self.point) - origin) * normal).sum(-1)
        t = distance / (direction * normal).sum(-1)
        return torch.where(t > 0, t, math.inf)

    def surface(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return normals and texture coordinates."""
        normal = torch.nn.functional.normalize(points.new_tensor(self.normal), dim=0)
        is_level = abs(float(normal[1])) > 0.9
        helper = points.new_tensor([1.0, 0.0, 0.0] if is_level else [0.0, 1.0, 0.0])
        u = torch.nn.functional.normalize(torch.linalg.cross(helper, normal), dim=0)
        v = torch.linalg.cross(normal, u)
        offset = points - points.new_tensor(self.point)
        uv = torch.stack([(offset * u).sum(-1), (offset * v).sum(-1)], dim=-1)
        return normal.expand_as(points), uv

    @property
    def bounds(self) -> None:
        """No ball holds it."""
        return None


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box turned about the vertical axis."""

    center: Vector
    half: Vector
    """Half its edges."""
    yaw_deg: float = 0.0

    def intersect(self, origin: Tensor, direction: Tensor) -> Tensor:
        """Return t of the first hit."""
        near = torch.full_like(direction[:, 0], -math.inf)
        far = torch.full_like(near, math.inf)
        local_origin = self._to_local(origin - origin.new_tensor(self.center))
        local_direction = self._to_local(direction)
        for axis in range(3):
            slope = local_direction[:, axis]
            inverse = 1.0 / torch.where(slope == 0.0, _PARALLEL, slope)
            middle = -local_origin[..., axis] * inverse
            reach = self.half[axis] * inverse.abs()
            near = torch.maximum(near, middle - reach)
            far = torch.minimum(far, middle + reach)
        return torch.where((near <= far) & (near > 0), near, math.inf)

    def surface(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return normals and texture coordinates, each face in its own cell of a 2 x 3 grid."""
        local = self._to_local(points - points.new_tensor(self.center))
        axis = (local.abs() / local.new_tensor(self.half)).argmax(-1)
        sign = local.gather(-1, axis[:, None]).sign()
        normal = torch.nn.functional.one_hot(axis, 3).to(local) * sign
        x, y, z = local.unbind(-1)
        u = torch.where(axis == 0, z, x)
        v = torch.where(axis == 1, z, y)
        uv = torch.stack([u, v], dim=-1) + _cell_shift(axis, sign[:, 0], 2.0 * max(self.half))
        return self._to_world(normal), uv

    @property
    def bounds(self) -> tuple[Vector, float]:
        """A ball around the corners."""
        return self.center, math.hypot(*self.half)

    def _to_local(self, vectors: Tensor) -> Tensor:
        return self._turn(vectors, -math.radians(self.yaw_deg))

    def _to_world(self, vectors: Tensor) -> Tensor:
        return self._turn(vectors, math.radians(self.yaw_deg))

    def _turn(self, vectors: Tensor, angle: float) -> Tensor:
        if angle == 0.0:
            return vectors
        cos, sin = math.cos(angle), math.sin(angle)
        x, y, z = vectors.unbind(-1)
        return torch.stack([cos * x + sin * z, y, cos * z - sin * x], dim=-1)


@dataclass(frozen=True, kw_only=True)
class Sphere:
    """A ball."""

    center: Vector
    radius: float

    def intersect(self, origin: Tensor, direction: Tensor) -> Tensor:
        """Return t of the first hit."""
        offset = origin - origin.new_tensor(self.center)
        a = (direction * direction).sum(-1)
        b = (direction * offset).sum(-1)
        c = (offset * offset).sum(-1) - self.radius**2
        root = b * b - a * c
        t = (-b - root.clamp(min=0.0).sqrt()) / a
        return torch.where((root > 0) & (t > 0), t, math.inf)

    def surface(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return normals and texture coordinates."""
        normal = (points - points.new_tensor(self.center)) / self.radius
        # As on a cube around the ball: longitude and latitude would pinch at the poles.
        axis = normal.abs().argmax(-1)
        depth = normal.gather(-1, axis[:, None])
        x, y, z = normal.unbind(-1)
        across = torch.stack([torch.where(axis == 0, z, x), torch.where(axis == 1, z, y)], dim=-1)
        uv = torch.atan(across / depth.abs()) * self.radius
        return normal, uv + _cell_shift(axis, depth[:, 0].sign(), 0.5 * math.pi * self.radius)

    @property
    def bounds(self) -> tuple[Vector, float]:
        """Itself."""
        return self.center, self.radius


@dataclass(frozen=True, kw_only=True)
class Pillar:
    """An upright cylinder without caps, usually from floor to ceiling."""

    center: Vector
    radius: float
    half_height: float

    def intersect(self, origin: Tensor, direction: Tensor) -> Tensor:
        """Return t of the first hit."""
        offset = origin - origin.new_tensor(self.center)
        a = direction[:, 0] ** 2 + direction[:, 2] ** 2
        b = direction[:, 0] * offset[..., 0] + direction[:, 2] * offset[..., 2]
        c = offset[..., 0] ** 2 + offset[..., 2] ** 2 - self.radius**2
        root = b * b - a * c
        t = (-b - root.clamp(min=0.0).sqrt()) / a
        height = offset[..., 1] + t * direction[:, 1]
        return torch.where((root > 0) & (t > 0) & (height.abs() <= self.half_height), t, math.inf)

    def surface(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return normals and texture coordinates."""
        offset = points - points.new_tensor(self.center)
        x, y, z = offset.unbind(-1)
        normal = torch.stack([x, torch.zeros_like(y), z], dim=-1) / self.radius
        return normal, torch.stack([torch.atan2(x, z) * self.radius, y], dim=-1)

    @property
    def bounds(self) -> tuple[Vector, float]:
        """A ball around its ends."""
        return self.center, math.hypot(self.radius, self.half_height)


def _cell_shift(axis: Tensor, sign: Tensor, cell: float) -> Tensor:
    """Return the middle of each face's cell in a grid of 2 x 3, ``[P, 2]``."""
    return torch.stack([0.5 * sign * cell, (axis - 1).to(sign) * cell], dim=-1)
