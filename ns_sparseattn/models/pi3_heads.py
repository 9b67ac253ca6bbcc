# SPDX-License-Identifier: Apache-2.0
"""Heads of Pi3: a few blocks within each frame, then pixels by a linear layer, or a pose.

Axes: ``F`` frames, ``T = S + P`` tokens of a frame, ``P`` patches of a ``gh x gw`` grid, ``C``
channels, ``K`` values, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import nearest_rotation
from .block import Block, BlockConfig
from .pose_regressor import PoseRegressor
from .rope import RopeTable


class HeadDecoder(nn.Module):
    """Blocks that turn the decoder's tokens into those of one head, each frame by itself."""

    def __init__(self, *, dim_in: int, dim_out: int, depth: int, block: BlockConfig) -> None:
        super().__init__()
        self.projects = nn.Linear(dim_in, block.dim)
        self.blocks = nn.ModuleList(Block(block) for _ in range(depth))
        self.linear_out = nn.Linear(block.dim, dim_out)

    def forward(
        self,
        tokens: Tensor,  # [F, T, C]
        rope: RopeTable,
        key_mask: Tensor | None = None,  # [F, T] bool
    ) -> Tensor:
        """Return ``[F, T, dim_out]``; tokens outside the mask are attended to by none."""
        x = self.projects(tokens)
        for block in self.blocks:
            x = block(x, rope, key_mask)
        return self.linear_out(x)


class LinearHead(nn.Module):
    """Turn each patch token into the values of its pixels."""

    def __init__(self, *, dim: int, num_outputs: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(dim, num_outputs * patch_size**2)

    def forward(
        self,
        patches: Tensor,  # [F, P, C]
        grid: tuple[int, int],
    ) -> Tensor:
        """Return raw values ``[F, K, H, W]``."""
        values = self.proj(patches).transpose(1, 2).unflatten(2, grid)
        return F.pixel_shuffle(values, self.patch_size)


class PoseHead(PoseRegressor):
    """Turn the patch tokens of a frame into its pose."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, num_rotation=9)

    def forward(
        self,
        patches: Tensor,  # [F, P, C]
        patch_mask: Tensor | None = None,  # [F, P] bool
    ) -> Tensor:
        """Return ``world_from_cam``, ``[F, 3, 4]``, OpenCV axes."""
        translation, rows = self.regress(patches, patch_mask)
        return torch.cat([rotation_from_rows(rows), translation.unsqueeze(-1)], dim=-1)


def rotation_from_rows(
    numbers: Tensor,  # [..., 9]
) -> Tensor:
    """Return the rotation ``[..., 3, 3]`` nearest to a matrix whose rows are first normalised."""
    return nearest_rotation(F.normalize(numbers.unflatten(-1, (3, 3)), dim=-1))


def points_from_raw(
    xy: Tensor,  # [F, 2, H, W]
    log_depth: Tensor,  # [F, 1, H, W]
    max_log_depth: float = math.inf,
) -> Tensor:
    """Return points in the camera, ``[F, H, W, 3]``, of slopes and the logarithm of the depth."""
    depth = log_depth.clamp(max=max_log_depth).exp()
    return torch.cat([xy * depth, depth], dim=1).movedim(1, -1)
