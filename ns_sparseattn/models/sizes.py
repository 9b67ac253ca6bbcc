# SPDX-License-Identifier: Apache-2.0
"""What the sizes of all networks have in common: those of the image encoder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .vit import VitConfig

Shapes = Mapping[str, tuple[int, ...]]
"""Key to shape of every tensor of a file."""


@dataclass(frozen=True, kw_only=True)
class EncoderSizes:
    """Sizes of the image encoder; the defaults are those of ViT-L/14 as published with VGGT."""

    image_size: int = 518
    """Side of the square image, in pixels, that the position embedding was made for."""
    patch_size: int = 14
    """Side of a patch, in pixels."""
    embed_dim: int = 1024
    """Channels of a token of the encoder."""
    encoder_depth: int = 24
    """Blocks of the image encoder."""
    encoder_heads: int = 16
    """Attention heads of the image encoder."""

    @property
    def plain_vit(self) -> VitConfig:
        """An image encoder of these sizes, to which networks add what is their own."""
        return VitConfig(
            dim=self.embed_dim,
            depth=self.encoder_depth,
            num_heads=self.encoder_heads,
            patch_size=self.patch_size,
            image_size=self.image_size,
        )


def image_size_from(num_positions: int, patch_size: int) -> int:
    """Return the side of the image that a position embedding with a class token was made for."""
    return math.isqrt(num_positions - 1) * patch_size


def count_blocks(shapes: Shapes, pattern: str) -> int:
    """Return how many different numbers stand in the keys that begin with a pattern.

    Args:
        shapes: Shapes of all tensors.
        pattern: Regular expression whose first group is the number.
    """
    return len({int(m.group(1)) for key in shapes if (m := re.match(pattern, key))})
