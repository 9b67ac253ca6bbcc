# SPDX-License-Identifier: Apache-2.0
"""Dense prediction head: tokens of four layers become a map of one value vector per pixel.

Axes: ``F`` frames, ``P`` patches of a ``gh x gw`` grid, ``C`` token channels, ``K`` feature
channels, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import LayerNorm

_POSITION_WEIGHT = 0.1
_POSITION_BASE = 100.0
_OUTPUT_WIDTH = 32


def uv_coordinates(height: int, width: int, aspect: float) -> tuple[Tensor, Tensor]:
    """Return the column and row coordinates of a feature map on a plane of unit diagonal.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        aspect: Width over height of the image that the map covers.

    Returns:
        ``u`` of each column, ``[width]``, and ``v`` of each row, ``[height]``, both float64: cell
        centres of an image that spans ``±aspect / d`` and ``±1 / d``, ``d = sqrt(aspect^2 + 1)``.
    """
    diagonal = (aspect**2 + 1) ** 0.5

    def axis(span: float, count: int) -> Tensor:
        last = span * (count - 1) / count
        return torch.linspace(-last, last, count, dtype=torch.float64)

    return axis(aspect / diagonal, width), axis(1 / diagonal, height)


def sinusoids(coordinates: Tensor, num_channels: int) -> Tensor:
    """Embed coordinates ``[n]`` in sines, then cosines: float32 ``[num_channels, n]``."""
    half = num_channels // 2
    frequencies = _POSITION_BASE ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = frequencies.unsqueeze(-1) * coordinates
    return torch.cat([angles.sin(), angles.cos()]).float()


def add_uv_embedding(x: Tensor, aspect: float) -> Tensor:
    """Add the weighted position embedding to a feature map ``[F, K, h, w]`` in place and return it.

    The first half of the channels depends on the column alone and the second on the row alone, so
    the embedding is never formed as a map.
    """
    num_channels, height, width = x.shape[1:]
    u, v = uv_coordinates(height, width, aspect)
    half = num_channels // 2
    columns = sinusoids(u, half).unsqueeze(1).to(x) * _POSITION_WEIGHT  # [K / 2, 1, w]
    rows = sinusoids(v, half).unsqueeze(2).to(x) * _POSITION_WEIGHT  # [K / 2, h, 1]
    x[:, :half] += columns
    x[:, half:] += rows
    return x


class ResidualConvUnit(nn.Module):
    """Two convolutions around which the *rectified* input is added, as in the training."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_features, num_features, 3, padding=1)
        self.conv2 = nn.Conv2d(num_features, num_features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x``, ``[F, K, h, w]``."""
        x = F.relu(x)
        return self.conv2(F.relu(self.conv1(x))) + x


class FusionBlock(nn.Module):
    """Merge a coarse map with the next finer one and resize the sum."""

    def __init__(self, num_features: int, *, has_skip: bool = True) -> None:
        super().__init__()
        if has_skip:
            self.resConfUnit1 = ResidualConvUnit(num_features)
        self.resConfUnit2 = ResidualConvUnit(num_features)
        self.out_conv = nn.Conv2d(num_features, num_features, 1)

    def forward(
        self,
        x: Tensor,  # [F, K, h, w]
        skip: Tensor | None,  # [F, K, h, w]
        size: tuple[int, int],
    ) -> Tensor:
        """Return ``[F, K, *size]``; a block made with ``has_skip`` needs ``skip``."""
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        x = self.resConfUnit2(x)
        # The published model resizes first. A 1x1 convolution commutes with a resize whose weights
        # sum to one, and is cheaper on the smaller map.
        x = self.out_conv(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class _Scratch(nn.Module):
    """The convolutions after the projections, under their name in the published weights."""

    def __init__(self, widths: Sequence[int], num_features: int, num_outputs: int) -> None:
        super().__init__()

        def to_features(width: int) -> nn.Conv2d:
            return nn.Conv2d(width, num_features, 3, padding=1, bias=False)

        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = map(to_features, widths)
        self.refinenet1 = FusionBlock(num_features)
        self.refinenet2 = FusionBlock(num_features)
        self.refinenet3 = FusionBlock(num_features)
        self.refinenet4 = FusionBlock(num_features, has_skip=False)
        self.output_conv1 = nn.Conv2d(num_features, num_features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(num_features // 2, _OUTPUT_WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_OUTPUT_WIDTH, num_outputs, 1),
        )


class DptHead(nn.Module):
    """Turn tapped tokens into raw per-pixel values; activations are the model's business."""

    def __init__(
        self,
        *,
        dim: int,
        num_features: int,
        widths: Sequence[int],
        num_outputs: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, width, 1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = _Scratch(widths, num_features, num_outputs)

    def forward(
        self,
        taps: Sequence[Tensor],  # 4 x [F, P, C]
        grid: tuple[int, int],
    ) -> Tensor:
        """Return raw values for every pixel.

        Args:
            taps: Patch tokens of the four tapped layers, shallow to deep.
            grid: Rows and columns of patches.

        Returns:
            ``[F, num_outputs, H, W]``.
        """
        height, width = grid[0] * self.patch_size, grid[1] * self.patch_size
        aspect = width / height
        s = self.scratch
        maps = []
        for tokens, project, resize, to_features in zip(
            taps,
            self.projects,
            self.resize_layers,
            (s.layer1_rn, s.layer2_rn, s.layer3_rn, s.layer4_rn),
            strict=True,
        ):
            x = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
            maps.append(to_features(resize(add_uv_embedding(project(x), aspect))))
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        x = s.refinenet4(maps.pop(), None, sizes[2])
        x = s.refinenet3(x, maps.pop(), sizes[1])
        x = s.refinenet2(x, maps.pop(), sizes[0])
        x = s.refinenet1(x, maps.pop(), (2 * sizes[0][0], 2 * sizes[0][1]))
        x = s.output_conv1(x)
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
        return s.output_conv2(add_uv_embedding(x, aspect))
