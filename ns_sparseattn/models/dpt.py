# SPDX-License-Identifier: Apache-2.0
"""Dense prediction head: tokens of four layers become a map of one value vector per pixel.

Axes: ``F`` frames, ``P`` patches of a ``gh x gw`` grid, ``C`` token channels, ``K`` feature
channels, ``H`` x ``W`` pixels.
"""

from __future__ import annotations

import functools
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
    """Two convolutions around which the input is added, rectified or not, as in the training."""

    def __init__(self, num_features: int, *, rectifies_skip: bool = True) -> None:
        super().__init__()
        self.rectifies_skip = rectifies_skip
        self.conv1 = nn.Conv2d(num_features, num_features, 3, padding=1)
        self.conv2 = nn.Conv2d(num_features, num_features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x``, ``[F, K, h, w]``."""
        rectified = F.relu(x)
        skip = rectified if self.rectifies_skip else x
        return self.conv2(F.relu(self.conv1(rectified))) + skip


class FusionBlock(nn.Module):
    """Merge a coarse map with the next finer one and resize the sum."""

    def __init__(
        self, num_features: int, *, has_skip: bool = True, rectifies_skip: bool = True
    ) -> None:
        super().__init__()
        if has_skip:
            self.resConfUnit1 = ResidualConvUnit(num_features, rectifies_skip=rectifies_skip)
        self.resConfUnit2 = ResidualConvUnit(num_features, rectifies_skip=rectifies_skip)
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


class FusionPyramid(nn.Module):
    """The four blocks that merge maps of 4, 2, 1 and 1/2 pixels a patch into one of 8."""

    def __init__(
        self, num_features: int, *, rectifies_skip: bool = True, crops_coarsest: bool = False
    ) -> None:
        super().__init__()
        make = functools.partial(FusionBlock, num_features, rectifies_skip=rectifies_skip)
        self.crops_coarsest = crops_coarsest
        self.refinenet1 = make()
        self.refinenet2 = make()
        self.refinenet3 = make()
        self.refinenet4 = make(has_skip=False)

    def fuse(
        self,
        maps: list[Tensor],  # 4 x [F, K, h, w]
    ) -> Tensor:
        """Merge maps, fine to coarse, into ``[F, K, 8 gh, 8 gw]``; the list is used up.

        The coarsest map, of half the patches rounded up, is resized to the size of the next, or
        doubled and cropped to it.
        """
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        coarse = (2 * sizes[3][0], 2 * sizes[3][1]) if self.crops_coarsest else sizes[2]
        x = self.refinenet4(maps.pop(), None, coarse)[:, :, : sizes[2][0], : sizes[2][1]]
        x = self.refinenet3(x, maps.pop(), sizes[1])
        x = self.refinenet2(x, maps.pop(), sizes[0])
        return self.refinenet1(x, maps.pop(), (2 * sizes[0][0], 2 * sizes[0][1]))


def make_resize_layers(widths: Sequence[int]) -> list[nn.Module]:
    """Return the layers that bring maps of one pixel a patch to 4, 2, 1 and 1/2."""
    return [
        nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
        nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
        nn.Identity(),
        nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
    ]


class _Scratch(FusionPyramid):
    """The convolutions after the projections, under their name in the published weights."""

    def __init__(self, widths: Sequence[int], num_features: int, num_outputs: int) -> None:
        super().__init__(num_features)

        def to_features(width: int) -> nn.Conv2d:
            return nn.Conv2d(width, num_features, 3, padding=1, bias=False)

        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = map(to_features, widths)
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
        self.resize_layers = nn.ModuleList(make_resize_layers(widths))
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
        x = s.output_conv1(s.fuse(maps))
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
        return s.output_conv2(add_uv_embedding(x, aspect))
