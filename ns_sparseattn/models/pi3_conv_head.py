# SPDX-License-Identifier: Apache-2.0
"""Dense heads of Pi3X: patch tokens are enlarged by convolutions that know where they are.

Axes: ``F`` frames, ``P`` patches of a ``gh x gw`` grid, ``C`` token channels, ``K`` channels, ``H``
x ``W`` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dpt import uv_coordinates

_NUM_UV = 2
_HIDDEN_RATIO = 2
_CHANNELS_PER_GROUP = 32


def append_uv(x: Tensor, aspect: float) -> Tensor:
    """Append each cell's two coordinates on a plane of unit diagonal to its channels.

    Args:
        x: Feature map, ``[F, K, h, w]``.
        aspect: Width over height of the image that the map covers.

    Returns:
        ``[F, K + 2, h, w]``.
    """
    height, width = x.shape[2:]
    u, v = uv_coordinates(height, width, aspect)
    uv = torch.stack([u.expand(height, -1), v.unsqueeze(1).expand(-1, width)]).to(x)
    return torch.cat([x, uv.expand(len(x), -1, -1, -1)], dim=1)


class _ResidualBlock(nn.Module):
    """Two normalised convolutions around which the input is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = _HIDDEN_RATIO * width
        self.layers = nn.Sequential(
            nn.GroupNorm(1, width),
            nn.ReLU(),
            _convolution(width, hidden),
            nn.GroupNorm(max(1, hidden // _CHANNELS_PER_GROUP), hidden),
            nn.ReLU(),
            _convolution(hidden, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ConvHead(nn.Module):
    """Enlarge a map of patch tokens to eight pixels a patch, then to the image."""

    def __init__(
        self,
        *,
        dim: int,
        widths: Sequence[int],
        last_width: int,
        num_outputs: Sequence[int],
        patch_size: int,
        num_residual_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.upsample_blocks = nn.ModuleList(
            _enlarge(before, width, num_residual_blocks)
            for before, width in zip((dim, *widths[:-1]), widths, strict=True)
        )
        self.output_block = nn.ModuleList(
            nn.Sequential(
                _convolution(widths[-1] + _NUM_UV, last_width),
                nn.ReLU(),
                nn.Conv2d(last_width, count, 1),
            )
            for count in num_outputs
        )

    def last_layers(self) -> list[nn.Conv2d]:
        """Return the convolutions that the values come out of."""
        layers = [layer for output in self.output_block for layer in output.children()]
        return [x for x in layers if isinstance(x, nn.Conv2d) and x.kernel_size == (1, 1)]

    def forward(
        self,
        patches: Tensor,  # [F, P, C]
        grid: tuple[int, int],
    ) -> list[Tensor]:
        """Return raw values, one ``[F, K, H, W]`` for each entry of ``num_outputs``."""
        height, width = grid[0] * self.patch_size, grid[1] * self.patch_size
        aspect = width / height
        x = patches.transpose(1, 2).unflatten(2, grid)
        for enlarge in self.upsample_blocks:
            x = enlarge(append_uv(x, aspect))
        x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        x = append_uv(x, aspect)
        return [output(x) for output in self.output_block]


def _enlarge(width_in: int, width: int, num_residual_blocks: int) -> nn.Sequential:
    double = nn.Sequential(
        nn.ConvTranspose2d(width_in + _NUM_UV, width, 2, stride=2), _convolution(width, width)
    )
    return nn.Sequential(double, *(_ResidualBlock(width) for _ in range(num_residual_blocks)))


def _convolution(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, padding=1, padding_mode="replicate")
