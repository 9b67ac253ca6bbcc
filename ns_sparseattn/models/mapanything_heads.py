# SPDX-License-Identifier: Apache-2.0
"""MapAnything's heads: values per pixel, a pose per frame, one scale per scene.

Module and parameter names are those of the published weights.

Axes: ``F`` frames, ``gh x gw`` patches, ``C`` token channels, ``K`` feature channels, ``H`` x ``W``
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dpt import FusionPyramid, make_resize_layers
from .pose_regressor import PointwiseConv, PoseRegressor

NUM_DENSE_OUTPUTS = 6
"""Ray direction (3), depth along the ray, confidence, how certain the surface is."""


class DenseFeatures(nn.Module):
    """Token maps of four depths merged into one map of 8 cells per patch side."""

    def __init__(self, dims: Sequence[int], widths: Sequence[int], num_features: int) -> None:
        super().__init__()
        self.input_process = nn.ModuleList()
        for dim, width, resize in zip(dims, widths, make_resize_layers(widths), strict=True):
            to_features = nn.Conv2d(width, num_features, 3, padding=1, bias=False)
            project = nn.Sequential(nn.Conv2d(dim, width, 1), resize)
            self.input_process.append(nn.Sequential(project, to_features))
        self.scratch = FusionPyramid(num_features, rectifies_skip=False, crops_coarsest=True)

    def forward(
        self,
        maps: Sequence[Tensor],  # 4 x [F, C, gh, gw]
    ) -> Tensor:
        """Return ``[F, K, 8 gh, 8 gw]``."""
        return self.scratch.fuse(
            [process(x) for process, x in zip(self.input_process, maps, strict=True)]
        )


class DenseRegressor(nn.Module):
    """From merged features to raw values per pixel."""

    def __init__(self, num_features: int, num_outputs: int = NUM_DENSE_OUTPUTS) -> None:
        super().__init__()
        half = num_features // 2
        self.conv1 = nn.Conv2d(num_features, half, 3, padding=1)
        self.conv2 = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1), nn.ReLU(), nn.Conv2d(half, num_outputs, 1)
        )

    def forward(
        self,
        x: Tensor,  # [F, K, h, w]
        size: tuple[int, int],
    ) -> Tensor:
        """Return raw values ``[F, num_outputs, *size]``."""
        x = F.interpolate(self.conv1(x), size=size, mode="bilinear", align_corners=True)
        return self.conv2(x)


class PoseHead(PoseRegressor):
    """One pose per frame from its final patch tokens."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(width, num_rotation=4, make_layer=PointwiseConv)
        self.proj = PointwiseConv(dim, width)

    def forward(
        self,
        x: Tensor,  # [F, C, gh, gw]
        patch_mask: Tensor | None = None,  # [F, gh * gw] bool
    ) -> Tensor:
        """Return translation and unnormalised quaternion (x, y, z, w), ``[F, 7]``."""
        patches = self.proj(x.flatten(2).transpose(1, 2))
        return torch.cat(self.regress(patches, patch_mask), dim=1)


class ScaleHead(nn.Module):
    """The logarithm of the scene's scale from the scale token."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, width)
        self.mlp = nn.Sequential(
            *(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2))
        )
        self.output_proj = nn.Linear(width, 1)

    def forward(
        self,
        token: Tensor,  # [B, C]
    ) -> Tensor:
        """Return ``[B, 1]``."""
        return self.output_proj(self.mlp(self.proj(token)))
