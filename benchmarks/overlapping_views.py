# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values with the structure of overlapping photos, to measure attention on.

Cameras on an arc look at a ball on a ground plane. Tokens are similar where they see nearby surface
points, each head at its own length scale: a trained model's cross-view attention without a trained
model. Random Fourier features (Rahimi and Recht, 2007) make the similarity a Gaussian of the
distance. How peaked attention is can be chosen; that decides how much block sparsity loses.

Axes: ``H`` heads, ``F`` frames, ``P`` patches of a frame, ``D`` head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Sharpness = Literal["diffuse", "medium", "peaked"]

LOGITS: dict[Sharpness, float] = {"diffuse": 3.0, "medium": 8.0, "peaked": 16.0}
"""Logit of two tokens that see the same point, before noise."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Photos of one scene, as tokens."""

    num_frames: int
    grid_height: int
    grid_width: int
    num_heads: int = 16
    head_size: int = 64
    noise: float = 0.3
    """Standard deviation of the noise of a token's feature, relative to the feature's norm."""
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        """Patches of all frames."""
        return self.num_frames * self.grid_height * self.grid_width

    def surface_points(self) -> Tensor:
        """Return what the middle of each patch sees, ``[F * P, 3]`` in ball radii."""
        angles = torch.linspace(0, 0.8 * math.pi, self.num_frames)
        eyes = torch.stack([4 * angles.cos(), 4 * angles.sin(), torch.full_like(angles, 1.5)], -1)
        forward = torch.nn.functional.normalize(-eyes, dim=-1)
        up = torch.tensor([0.0, 0.0, 1.0]).expand_as(forward)
        right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
        down = torch.linalg.cross(forward, right)
        # Field of view of 60 degrees along the width.
        half = math.tan(math.radians(30))
        x = torch.linspace(-half, half, self.grid_width)
        y = torch.linspace(-half, half, self.grid_height) * self.grid_height / self.grid_width
        y, x = (t.flatten() for t in torch.meshgrid(y, x, indexing="ij"))
        rays = forward[:, None] + x[:, None] * right[:, None] + y[:, None] * down[:, None]
        rays = torch.nn.functional.normalize(rays, dim=-1)  # [F, P, 3]
        along = -(eyes[:, None] * rays).sum(-1)  # Distance to the point nearest to the centre.
        missed = (eyes[:, None] + along[..., None] * rays).square().sum(-1)
        to_ball = along - (1 - missed).clamp_min(0).sqrt()
        # The ground touches the ball from below; rays above the horizon end at a far wall.
        to_ground = torch.where(
            rays[..., 2] < -0.05, (-1 - eyes[:, None, 2]) / rays[..., 2], torch.tensor(12.0)
        ).clamp_max(12.0)
        distance = torch.where(missed < 1, to_ball, to_ground)
        return (eyes[:, None] + distance[..., None] * rays).reshape(-1, 3)

    def qkv(self, sharpness: Sharpness) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each ``[1, H, F * P, D]`` float32, frame by frame."""
        generator = torch.Generator().manual_seed(self.seed)
        points = self.surface_points()
        # From a fifth of the ball's radius to the size of the scene.
        scales = torch.logspace(math.log10(0.2), math.log10(3.0), self.num_heads)
        gain = (LOGITS[sharpness] * self.head_size**0.5) ** 0.5
        q, k, v = (torch.empty(1, self.num_heads, self.num_tokens, self.head_size) for _ in "qkv")
        for head, scale in enumerate(scales.tolist()):
            feature = self._features(points / scale, generator)
            q[0, head] = gain * self._disturb(feature, generator)
            k[0, head] = gain * self._disturb(feature, generator)
            v[0, head] = self._disturb(self._features(2 * points / scale, generator), generator)
        return q, k, v

    def _features(self, points: Tensor, generator: torch.Generator) -> Tensor:
        """Unit vectors ``[F * P, D]`` whose products are about ``exp(-distance^2 / 2)``."""
        frequencies = torch.randn(3, self.head_size // 2, generator=generator)
        phases = points @ frequencies
        return torch.cat([phases.cos(), phases.sin()], -1) * (2 / self.head_size) ** 0.5

    def _disturb(self, feature: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(feature.shape, generator=generator)
        return feature + self.noise * self.head_size**-0.5 * noise
