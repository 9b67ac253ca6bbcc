# SPDX-License-Identifier: Apache-2.0
"""DINOv2 vision transformer with or without register tokens, the image encoder of all models.

Axes: ``F`` frames, ``H`` x ``W`` pixels, ``P`` patches in row-major order, ``C`` channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import Block, BlockConfig, LayerNorm, MlpKind

PositionResize = Literal["antialiased", "offset"]

_NORM_EPS = 1e-6
# The register-free networks were trained with this added to the size that enters the scale factor.
_POSITION_OFFSET = 0.1


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Sizes of the image encoder; the defaults are ViT-L/14 with four registers."""

    dim: int = 1024
    """Channels of a token."""
    depth: int = 24
    """Number of blocks."""
    num_heads: int = 16
    """Attention heads."""
    num_channels: int = 3
    """Channels of the image."""
    patch_size: int = 14
    """Side of a patch, in pixels."""
    image_size: int = 518
    """Side of the square image, in pixels, that the learned position embedding was made for."""
    num_registers: int = 4
    """Register tokens between the class token and the patches."""
    mlp: MlpKind = "gelu"
    """MLP of the blocks; ViT-g has the gated one."""
    position_resize: PositionResize = "antialiased"
    """How the position embedding is fitted to another grid: by the networks with registers, or by
    those without."""
    has_mask_token: bool = True
    """Whether the weights carry the token that masked training used; inference does not read it."""
    has_final_norm: bool = True
    """Whether a norm follows the last block. Networks cut after some of their blocks have none."""

    @property
    def grid_size(self) -> int:
        """Patches along a side of that image."""
        return self.image_size // self.patch_size


def resize_position_grid(
    position_embedding: Tensor,  # [1, 1 + G * G, C]
    grid_height: int,
    grid_width: int,
    kind: PositionResize = "antialiased",
) -> Tensor:
    """Resize the patch part of a learned position embedding to another grid, in float32.

    Args:
        position_embedding: The class token's embedding, then a square grid in row-major order.
        grid_height: Rows of patches.
        grid_width: Columns of patches.
        kind: ``antialiased`` maps the grids onto each other; ``offset`` samples without a filter at
            steps of ``side / (size + 0.1)``, which leaves a small shift.

    Returns:
        ``[1, 1 + grid_height * grid_width, C]`` in the dtype of the input.
    """
    class_part, grid = position_embedding[:, :1], position_embedding[:, 1:]
    side = round(grid.shape[1] ** 0.5)
    if (grid_height, grid_width) == (side, side):
        return position_embedding
    grid = grid.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if kind == "offset":
        scale = tuple((size + _POSITION_OFFSET) / side for size in (grid_height, grid_width))
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        size = (grid_height, grid_width)
        grid = F.interpolate(grid, size=size, mode="bicubic", antialias=True, align_corners=False)
    grid = grid.flatten(2).transpose(1, 2).to(position_embedding.dtype)
    return torch.cat([class_part, grid], dim=1)


class PatchProjection(nn.Module):
    """The strided convolution that turns pixels into patch tokens."""

    def __init__(self, *, num_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(num_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(
        self,
        images: Tensor,  # [F, K, H, W]
    ) -> Tensor:
        """Return one token per patch, ``[F, P, C]``."""
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Encode images into patch tokens, each frame by itself."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        block = BlockConfig(dim=dim, num_heads=config.num_heads, norm_eps=_NORM_EPS, mlp=config.mlp)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.has_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid_size**2, dim))
        if config.num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_registers, dim))
        self.patch_embed = PatchProjection(
            num_channels=config.num_channels, dim=dim, patch_size=config.patch_size
        )
        self.blocks = nn.ModuleList(Block(block) for _ in range(config.depth))
        if config.has_final_norm:
            self.norm = LayerNorm(dim, eps=_NORM_EPS)

    def forward(
        self,
        images: Tensor,  # [F, 3, H, W]
        patch_mask: Tensor | None = None,  # [F, P] bool
    ) -> Tensor:
        """Return the patch tokens, ``[F, P, C]``: `encode` without class and register tokens."""
        return self.encode(images, patch_mask)[:, 1 + self.config.num_registers :]

    def encode(
        self,
        images: Tensor,  # [F, 3, H, W]
        patch_mask: Tensor | None = None,  # [F, P] bool
    ) -> Tensor:
        """Return all tokens after the last block, normalised if the network has a final norm.

        Args:
            images: Images after ImageNet normalisation; both sides are multiples of the patch size.
            patch_mask: False for patches that no token attends to.

        Returns:
            ``[F, 1 + num_registers + P, C]``: class token, registers, patches.
        """
        config = self.config
        num_frames, _, height, width = images.shape
        positions = resize_position_grid(
            self.pos_embed,
            height // config.patch_size,
            width // config.patch_size,
            config.position_resize,
        )
        parts = [(self.cls_token + positions[:, :1]).expand(num_frames, -1, -1)]
        if config.num_registers:
            parts.append(self.register_tokens.expand(num_frames, -1, -1))
        parts.append(self.patch_embed(images) + positions[:, 1:])
        tokens = torch.cat(parts, dim=1)
        key_mask = None
        if patch_mask is not None:
            key_mask = F.pad(patch_mask, (1 + config.num_registers, 0), value=True)
        for block in self.blocks:
            tokens = block(tokens, key_mask=key_mask)
        return self.norm(tokens) if config.has_final_norm else tokens
