# SPDX-License-Identifier: Apache-2.0
"""MapAnything's encoders of what is told about frames: maps (rays, depth) and short vectors.

Module and parameter names are those of the published weights.

Axes: ``F`` frames, ``H`` x ``W`` pixels, ``gh x gw`` patches, ``E`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .block import LayerNorm
from .mapanything_config import BLOCK_NORM_EPS


class _ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, with a GELU after each and none on the shortcut alone."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1)
        self.shortcut = nn.Identity() if num_in == num_out else nn.Conv2d(num_in, num_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv2(F.gelu(self.conv1(x))) + self.shortcut(x))


class MapEncoder(nn.Module):
    """Turn a map of values per pixel into one vector per patch."""

    def __init__(self, num_in: int, widths: Sequence[int], dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv_in = nn.Conv2d(num_in * patch_size**2, widths[0], 3, padding=1)
        self.encoder = nn.Sequential(
            *(_ResidualBlock(a, b) for a, b in zip(widths, widths[1:], strict=False)),
            nn.Conv2d(widths[-1], dim, 1),
        )
        self.norm_layer = LayerNorm(dim, eps=BLOCK_NORM_EPS)

    def forward(
        self,
        x: Tensor,  # [F, num_in, H, W]
    ) -> Tensor:
        """Return one normalised vector per patch, ``[F, gh, gw, E]``."""
        x = self.encoder(self.conv_in(F.pixel_unshuffle(x, self.patch_size)))
        return self.norm_layer(x.movedim(1, -1))


class VectorEncoder(nn.Module):
    """Turn a short vector per frame into a token."""

    def __init__(self, num_in: int, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        # Each stage wraps the one before, which is how the published weights number them.
        stack = nn.Sequential(nn.Linear(num_in, widths[0]), nn.GELU())
        for a, b in zip(widths, widths[1:], strict=False):
            stack = nn.Sequential(stack, nn.Linear(a, b), nn.GELU())
        self.encoder = nn.Sequential(stack, nn.Linear(widths[-1], dim))
        self.norm_layer = LayerNorm(dim, eps=BLOCK_NORM_EPS)

    def forward(
        self,
        x: Tensor,  # [F, num_in]
    ) -> Tensor:
        """Return one normalised vector per frame, ``[F, E]``."""
        return self.norm_layer(self.encoder(x))
