# SPDX-License-Identifier: Apache-2.0
"""What there is to see in a batch of scenes, and the cameras that see it, as tensors.

Worlds are metric with z up. Objects stand in fixed slots: boxes first, then ellipsoids, then
cylinders; a slot may be empty. Two more slots follow, the shell (a room seen from inside, or open
country that ends in sky) and the terrain.

Axes: ``B`` scenes, ``V`` views, ``K`` objects, ``J`` waves of a terrain, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="_Batch")


class _Batch:
    """A dataclass of tensors that share their first axis."""

    def take(self: Self, indices: Tensor) -> Self:
        """Return the entries of the given indices."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(
            **{
                name: value.take(indices) if isinstance(value, _Batch) else value[indices]
                for name, value in values.items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How many objects of each shape a scene has room for."""

    boxes: int = 8
    ellipsoids: int = 4
    cylinders: int = 4

    @property
    def objects(self) -> int:
        """All of them."""
        return self.boxes + self.ellipsoids + self.cylinders

    @property
    def shell(self) -> int:
        """Slot of the shell."""
        return self.objects

    @property
    def terrain(self) -> int:
        """Slot of the terrain."""
        return self.objects + 1

    @property
    def total(self) -> int:
        """Objects, shell and terrain."""
        return self.objects + 2


@dataclass(frozen=True, kw_only=True)
class Objects(_Batch):
    """Boxes, ellipsoids and upright cylinders in frames of their own."""

    center: Tensor  # [B, K, 3]
    world_from_object: Tensor  # [B, K, 3, 3]
    """Rotations."""
    half: Tensor  # [B, K, 3]
    """Half sizes, metres."""
    taper: Tensor  # [B, K]
    """How much narrower the top of a cylinder is than its foot, as a share of the radius."""
    is_there: Tensor  # [B, K] bool


@dataclass(frozen=True, kw_only=True)
class Surroundings(_Batch):
    """Shell, terrain and lamp."""

    shell_center: Tensor  # [B, 3]
    shell_half: Tensor  # [B, 3]
    is_open: Tensor  # [B] bool
    """Whether the shell but for its floor is sky, which has no depth."""
    has_terrain: Tensor  # [B] bool
    """Whether waves take the place of the floor."""
    wave_vector: Tensor  # [B, J, 2]
    """Radians a metre."""
    wave_phase: Tensor  # [B, J]
    wave_height: Tensor  # [B, J]
    """Amplitudes, metres."""
    lamp: Tensor  # [B, 3]
    """Place of the lamp."""
    lamp_strength: Tensor  # [B]
    ambient: Tensor  # [B]

    def terrain_height(
        self,
        place: Tensor,  # [B, P, 2]
    ) -> Tensor:
        """Return the height of the ground ``[B, P]``; zero where a scene has a plain floor."""
        height = self.wave_sum(*place.unbind(-1))
        return torch.where(self.has_terrain[:, None], height, 0.0)

    def wave_sum(
        self,
        x: Tensor,  # [B, P]
        y: Tensor,  # [B, P]
    ) -> Tensor:
        """Return the height of the waves ``[B, P]``, also where a scene has none."""
        total = torch.zeros_like(x)
        for wave in range(self.wave_phase.shape[1]):
            vector = self.wave_vector[:, wave, :, None]
            angle = torch.addcmul(self.wave_phase[:, wave, None], x, vector[:, 0])
            angle = torch.addcmul(angle, y, vector[:, 1]).sin_()
            total = torch.addcmul(total, angle, self.wave_height[:, wave, None])
        return total


@dataclass(frozen=True, kw_only=True)
class Looks(_Batch):
    """What the surfaces of all slots look like, ``S = K + 2`` of them."""

    texture: Tensor  # [B, S] int64
    metres: Tensor  # [B, S]
    """Side of the texture on the surface."""
    shift: Tensor  # [B, S, 2]
    gain: Tensor  # [B, S, 3]
    offset: Tensor  # [B, S, 3]
    """Colour is ``gain * texel + offset``."""
    gloss: Tensor  # [B, S]
    """Strength of the lamp's reflection."""


@dataclass(frozen=True, kw_only=True)
class World(_Batch):
    """A batch of scenes without cameras."""

    objects: Objects
    surroundings: Surroundings
    looks: Looks


@dataclass(frozen=True, kw_only=True)
class Cameras(_Batch):
    """Pinhole cameras with the principal point in the middle and square pixels."""

    cam_from_world: Tensor  # [B, V, 3, 4]
    focal: Tensor  # [B, V]
    """In units of the image's longer side."""

    @property
    def centers(self) -> Tensor:
        """Camera centres, ``[B, V, 3]``."""
        rotation, translation = self.cam_from_world[..., :3], self.cam_from_world[..., 3:]
        return -(rotation.transpose(-1, -2) @ translation)[..., 0]

    def intrinsics(self, height: int, width: int) -> Tensor:
        """Return ``[B, V, 3, 3]`` in pixels."""
        focal = self.focal * max(height, width)
        matrix = torch.zeros(*focal.shape, 3, 3, device=focal.device)
        matrix[..., 0, 0] = matrix[..., 1, 1] = focal
        matrix[..., 0, 2], matrix[..., 1, 2], matrix[..., 2, 2] = width / 2, height / 2, 1.0
        return matrix


@dataclass(frozen=True, kw_only=True)
class Views(_Batch):
    """Photos of a batch of scenes with everything that is known about them."""

    images: Tensor  # [B, V, 3, H, W] uint8
    depth: Tensor  # [B, V, H, W] float32
    """z-depth at pixel centres, metres; zero where there is none."""
    cam_from_world: Tensor  # [B, V, 3, 4]
    intrinsics: Tensor  # [B, V, 3, 3]

    @property
    def valid(self) -> Tensor:
        """Where there is depth, bool ``[B, V, H, W]``."""
        return self.depth > 0

    def choose(
        self,
        views: Tensor,  # [B, F]
    ) -> Views:
        """Return some views of each scene, in the order given."""
        rows = torch.arange(len(views), device=views.device)[:, None]
        return Views(**{f.name: getattr(self, f.name)[rows, views] for f in fields(self)})
