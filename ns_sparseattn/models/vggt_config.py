# SPDX-License-Identifier: Apache-2.0
"""Sizes of VGGT, and how they are recognised from the tensors of a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .sizes import EncoderSizes, Shapes, count_blocks, image_size_from
from .vit import VitConfig

# The published taps 4, 11, 17, 23 of 24 layers, as fractions of the depth.
_TAP_FRACTIONS = (5 / 24, 12 / 24, 18 / 24, 1.0)


def spread_taps(depth: int) -> tuple[int, int, int, int]:
    """Return four layers to feed the dense heads, spread over a depth as the published ones."""
    first, second, third, last = (max(0, math.ceil(depth * f) - 1) for f in _TAP_FRACTIONS)
    return first, second, third, last


@dataclass(frozen=True, kw_only=True)
class VGGTConfig(EncoderSizes):
    """Sizes of the network; the defaults are those of VGGT-1B.

    Tokens have ``embed_dim`` channels in encoder and aggregator; the heads see twice as many.
    """

    depth: int = 24
    """Pairs of frame and global blocks."""
    num_heads: int = 16
    """Attention heads of frame and global blocks."""
    num_registers: int = 4
    """Register tokens of a frame, in the encoder and again in the aggregator."""
    taps: tuple[int, int, int, int] = (4, 11, 17, 23)
    """Layers whose tokens feed the dense heads."""
    camera_heads: int = 16
    """Attention heads of the camera head."""
    camera_depth: int = 4
    """Blocks of the camera head."""
    camera_iterations: int = 4
    """How often the camera head refines its estimate."""
    dpt_features: int = 256
    """Channels of the fused feature maps of the dense heads."""
    dpt_widths: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    """Channels of the four maps before fusion."""

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads or (self.embed_dim // self.num_heads) % 4:
            raise ValueError(
                "`embed_dim` must be `num_heads` times a multiple of 4, "
                f"got {self.embed_dim} and {self.num_heads}."
            )
        if any(not 0 <= tap < self.depth for tap in self.taps):
            raise ValueError(f"`taps` must lie in [0, {self.depth}), got {self.taps}.")

    @classmethod
    def small(cls) -> VGGTConfig:
        """Return a small network with the published head size, for demonstrations and tests."""
        return cls(
            embed_dim=128,
            encoder_depth=2,
            encoder_heads=2,
            depth=4,
            num_heads=2,
            taps=spread_taps(4),
            camera_heads=2,
            dpt_features=32,
            dpt_widths=(32, 32, 64, 64),
        )

    @property
    def num_global_layers(self) -> int:
        """Blocks whose attention a plan decides on."""
        return self.depth

    @property
    def num_special(self) -> int:
        """Special tokens of a frame: one camera token and the registers."""
        return 1 + self.num_registers

    @property
    def vit(self) -> VitConfig:
        """Sizes of the image encoder."""
        return replace(self.plain_vit, num_registers=self.num_registers)


def config_from_shapes(shapes: Shapes) -> VGGTConfig | None:
    """Recognise the sizes of a VGGT from the shapes of its tensors.

    Shapes do not tell the number of heads of encoder and camera head, nor the tapped layers: they
    are taken to follow the published model, that is as many heads everywhere and taps at the same
    fractions of the depth.

    Args:
        shapes: Key to shape of every tensor of a file.

    Returns:
        The sizes, or ``None`` if a tensor that tells one of them is missing or has the wrong number
        of axes.
    """
    try:
        embed_dim, _, patch_size, _ = shapes["aggregator.patch_embed.patch_embed.proj.weight"]
        _, num_positions, _ = shapes["aggregator.patch_embed.pos_embed"]
        _, _, num_registers, _ = shapes["aggregator.register_token"]
        (head_size,) = shapes["aggregator.frame_blocks.0.attn.q_norm.weight"]
        dpt_features, _, _, _ = shapes["depth_head.scratch.layer1_rn.weight"]
        widths = tuple(shapes[f"depth_head.projects.{level}.weight"][0] for level in range(4))
    except (KeyError, ValueError):
        return None
    depth = count_blocks(shapes, r"aggregator\.global_blocks\.(\d+)\.")
    if depth == 0 or embed_dim % head_size:
        return None
    num_heads = embed_dim // head_size
    return VGGTConfig(
        image_size=image_size_from(num_positions, patch_size),
        patch_size=patch_size,
        embed_dim=embed_dim,
        encoder_depth=count_blocks(shapes, r"aggregator\.patch_embed\.blocks\.(\d+)\."),
        encoder_heads=num_heads,
        depth=depth,
        num_heads=num_heads,
        num_registers=num_registers,
        taps=spread_taps(depth),
        camera_heads=num_heads,
        camera_depth=count_blocks(shapes, r"camera_head\.trunk\.(\d+)\."),
        dpt_features=dpt_features,
        dpt_widths=(widths[0], widths[1], widths[2], widths[3]),
    )
