# SPDX-License-Identifier: Apache-2.0
"""Sizes of MapAnything, v1.1 and v1, and how they are recognised from the tensors of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .block import BlockConfig, MlpKind
from .sizes import EncoderSizes, Shapes, count_blocks, image_size_from
from .vit import VitConfig

BLOCK_NORM_EPS = 1e-6
"""Epsilon of every layer norm of the network."""
POSE_WIDTH_PER_PATCH_PIXEL = 4
"""Channels of the pose head, in units of the pixels of a patch, as published."""


@dataclass(frozen=True, kw_only=True)
class MapAnythingConfig(EncoderSizes):
    """Sizes of the network; the defaults are those of v1.1."""

    embed_dim: int = 1536
    """Channels of a token of the encoder, and of what is told about a frame."""
    encoder_heads: int = 24
    """Attention heads of the image encoder."""
    encoder_mlp: MlpKind = "swiglu"
    """MLP of the image encoder."""
    has_encoder_norm: bool = False
    """Whether the encoder's tokens pass its final norm."""
    has_class_token: bool = True
    """Whether each frame's class token takes part in the transformer, after its patches."""
    dim: int = 1536
    """Channels of a token of the transformer; tokens are projected if this is not `embed_dim`."""
    depth: int = 16
    """Blocks of the transformer: even ones are global, odd ones within a frame."""
    num_heads: int = 24
    """Attention heads of the transformer."""
    mlp: MlpKind = "swiglu"
    """MLP of the transformer."""
    has_layer_scale: bool = True
    """Whether the transformer's branches are scaled by learned vectors."""
    taps: tuple[int, int] = (7, 11)
    """Blocks whose tokens feed the dense head, beside the last one and the encoder."""
    dense_widths: tuple[int, ...] = (588, 768, 1024)
    """Channels inside the encoders of rays and depth."""
    global_widths: tuple[int, ...] = (128, 256, 512)
    """Channels inside the encoders of rotation, translation and scales."""
    dpt_features: int = 256
    """Channels of the fused feature maps of the dense head."""
    dpt_widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    """Channels of the four maps before fusion."""
    scale_width: int = 196
    """Channels of the scale head."""

    def __post_init__(self) -> None:
        if any(not 0 <= tap < self.depth for tap in self.taps):
            raise ValueError(f"`taps` must lie in [0, {self.depth}), got {self.taps}.")
        if self.dim % 2:
            raise ValueError(f"`dim` must be even, got {self.dim}.")

    @classmethod
    def v1(cls) -> MapAnythingConfig:
        """Return the sizes of the first release."""
        return cls(
            embed_dim=1024,
            encoder_heads=16,
            encoder_mlp="gelu",
            has_encoder_norm=True,
            has_class_token=False,
            dim=768,
            depth=24,
            num_heads=12,
            mlp="gelu",
            has_layer_scale=False,
            taps=(11, 17),
        )

    @classmethod
    def small(cls) -> MapAnythingConfig:
        """Return a small network of v1.1's kind with the published head size."""
        return cls(
            embed_dim=128,
            encoder_depth=2,
            encoder_heads=2,
            dim=128,
            depth=4,
            num_heads=2,
            taps=(1, 2),
            dense_widths=(32, 48, 64),
            global_widths=(16, 32, 64),
            dpt_features=32,
            dpt_widths=(16, 24, 32, 48),
            scale_width=32,
        )

    @property
    def num_global_layers(self) -> int:
        """Blocks of the transformer that attend among all frames."""
        return (self.depth + 1) // 2

    @property
    def num_special(self) -> int:
        """Tokens of a frame beside its patches."""
        return int(self.has_class_token)

    @property
    def vit(self) -> VitConfig:
        """Sizes of the image encoder."""
        return replace(
            self.plain_vit,
            num_registers=0,
            mlp=self.encoder_mlp,
            position_resize="offset",
            has_mask_token=False,
            has_final_norm=self.has_encoder_norm,
        )

    @property
    def block(self) -> BlockConfig:
        """Shape of the transformer's blocks."""
        return BlockConfig(
            dim=self.dim,
            num_heads=self.num_heads,
            norm_eps=BLOCK_NORM_EPS,
            mlp=self.mlp,
            has_layer_scale=self.has_layer_scale,
        )


_HEAD_SIZE = 64


def mapanything_config_from_shapes(shapes: Shapes) -> MapAnythingConfig | None:
    """Recognise the sizes of a MapAnything from the shapes of its tensors.

    Shapes do not tell the number of heads nor the tapped layers: heads are taken to have 64
    channels, and the taps to lie after 1/2 and 3/4 of the depth, as published.

    Args:
        shapes: Key to shape of every tensor of a file.

    Returns:
        The sizes, or ``None`` if a tensor that tells one of them is missing or has the wrong number
        of axes, or the sizes fit no such network.
    """
    blocks = "info_sharing.self_attention_blocks"
    try:
        embed_dim, _, patch_size, _ = shapes["encoder.model.patch_embed.proj.weight"]
        _, num_positions, _ = shapes["encoder.model.pos_embed"]
        (dim,) = shapes["info_sharing.norm.weight"]
        scale_width, _ = shapes["scale_head.proj.weight"]
        dpt_features, _, _, _ = shapes["dense_head.0.input_process.0.1.weight"]
        widths = [shapes[f"dense_head.0.input_process.{i}.0.0.weight"][0] for i in range(4)]
        dense_in = shapes["ray_dirs_encoder.conv_in.weight"][0]
        num_dense = count_blocks(shapes, r"ray_dirs_encoder\.encoder\.(\d+)\.conv1\.weight")
        dense = [shapes[f"ray_dirs_encoder.encoder.{i}.conv1.weight"][0] for i in range(num_dense)]
        global_widths = sorted(
            shape[0]
            for key, shape in shapes.items()
            if re.fullmatch(r"cam_rot_encoder\.encoder\.0\..*weight", key)
        )
    except (KeyError, ValueError, IndexError):
        return None
    depth = count_blocks(shapes, blocks.replace(".", r"\.") + r"\.(\d+)\.")
    # With one token per frame beside the patches came the gated MLP and the cut encoder; no tensor
    # tells of that token itself.
    has_encoder_norm = "encoder.model.norm.weight" in shapes
    if depth == 0 or dim % _HEAD_SIZE or embed_dim % _HEAD_SIZE:
        return None
    return MapAnythingConfig(
        image_size=image_size_from(num_positions, patch_size),
        patch_size=patch_size,
        embed_dim=embed_dim,
        encoder_depth=count_blocks(shapes, r"encoder\.model\.blocks\.(\d+)\."),
        encoder_heads=embed_dim // _HEAD_SIZE,
        encoder_mlp="swiglu" if "encoder.model.blocks.0.mlp.w12.weight" in shapes else "gelu",
        has_encoder_norm=has_encoder_norm,
        has_class_token=not has_encoder_norm,
        dim=dim,
        depth=depth,
        num_heads=dim // _HEAD_SIZE,
        mlp="swiglu" if f"{blocks}.0.mlp.w12.weight" in shapes else "gelu",
        has_layer_scale=f"{blocks}.0.ls1.gamma" in shapes,
        taps=(max(0, depth // 2 - 1), max(0, 3 * depth // 4 - 1)),
        dense_widths=(dense_in, *dense),
        global_widths=tuple(global_widths),
        dpt_features=dpt_features,
        dpt_widths=(widths[0], widths[1], widths[2], widths[3]),
        scale_width=scale_width,
    )
