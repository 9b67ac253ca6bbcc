# SPDX-License-Identifier: Apache-2.0
"""Sizes of Pi3 and Pi3X, and how they are recognised from the tensors of a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from .block import BlockConfig
from .sizes import EncoderSizes, Shapes, count_blocks, image_size_from
from .vit import VitConfig

NORM_EPS = 1e-6
"""Epsilon of every layer norm but those of queries and keys."""


@dataclass(frozen=True, kw_only=True)
class Pi3Config(EncoderSizes):
    """Sizes of the network; the defaults are those of the published weights.

    Tokens have ``embed_dim`` channels in encoder and decoder; the heads see twice as many.
    """

    depth: int = 36
    """Blocks of the decoder: even ones within a frame, odd ones global."""
    num_heads: int = 16
    """Attention heads of the decoder."""
    num_registers: int = 5
    """Register tokens of a frame in the decoder, its only special tokens."""
    head_dim: int = 1024
    """Channels of a token in the heads' own decoders."""
    head_heads: int = 16
    """Attention heads of those."""
    head_depth: int = 5
    """Blocks of those."""
    camera_dim: int = 512
    """Channels of the camera head."""

    def __post_init__(self) -> None:
        for width, heads in (("embed_dim", "num_heads"), ("head_dim", "head_heads")):
            _check_heads(width, getattr(self, width), heads, getattr(self, heads))
        if self.depth < 2 or self.depth % 2:
            raise ValueError(f"`depth` must be even and at least 2, got {self.depth}.")

    @classmethod
    def small(cls) -> Pi3Config:
        """Return a small network with the published head size, for demonstrations and tests."""
        return cls(
            embed_dim=128,
            encoder_depth=2,
            encoder_heads=2,
            depth=8,
            num_heads=2,
            head_dim=128,
            head_heads=2,
            head_depth=2,
            camera_dim=128,
        )

    @property
    def num_global_layers(self) -> int:
        """Blocks whose attention a plan decides on."""
        return self.depth // 2

    @property
    def vit(self) -> VitConfig:
        """Sizes of the image encoder."""
        return replace(self.plain_vit, has_mask_token=False)

    @property
    def decoder_block(self) -> BlockConfig:
        """A block of the decoder."""
        return BlockConfig(
            dim=self.embed_dim,
            num_heads=self.num_heads,
            norm_eps=NORM_EPS,
            has_qk_norm=True,
            rotates_in_value_dtype=True,
        )

    @property
    def head_block(self) -> BlockConfig:
        """A block of a head's decoder."""
        return BlockConfig(
            dim=self.head_dim,
            num_heads=self.head_heads,
            norm_eps=NORM_EPS,
            has_layer_scale=False,
            rotates_in_value_dtype=True,
        )


@dataclass(frozen=True, kw_only=True)
class Pi3XConfig(Pi3Config):
    """Sizes of Pi3X: those of Pi3, of convolutional heads, of the scale and of what it is told."""

    upsample_widths: tuple[int, int, int] = (256, 128, 64)
    """Channels of the dense heads, at 2, 4 and 8 pixels a patch."""
    last_width: int = 32
    """Channels of the dense heads at the size of the image."""
    metric_dim: int = 512
    """Channels of the decoder of the metric scale."""
    metric_heads: int = 8
    """Attention heads of that."""
    metric_depth: int = 5
    """Blocks of that."""
    has_conditions: bool = True
    """Whether the network can be told rays, depth and poses."""
    inject_layers: tuple[int, ...] = (1, 9, 17, 25, 33)
    """Blocks of the decoder after which poses are told."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads("metric_dim", self.metric_dim, "metric_heads", self.metric_heads)
        if any(not 0 <= layer < self.depth for layer in self.inject_layers):
            raise ValueError(
                f"`inject_layers` must lie in [0, {self.depth}), got {self.inject_layers}."
            )

    @classmethod
    def small(cls) -> Pi3XConfig:
        """Return a small network with the published head size, for demonstrations and tests."""
        common = Pi3Config.small()
        return cls(
            **asdict(common),
            upsample_widths=(64, 32, 32),
            last_width=16,
            metric_dim=128,
            metric_heads=2,
            metric_depth=2,
            inject_layers=spread_injections(common.depth, 2),
        )

    @property
    def depth_vit(self) -> VitConfig:
        """Sizes of the depth encoder: depth and where it is known, as two channels."""
        return replace(self.vit, num_channels=2)


def spread_injections(depth: int, count: int) -> tuple[int, ...]:
    """Return the blocks after which poses are told, spread over a depth as the published ones."""
    step = max(2, (depth - 2) // max(1, count - 1) // 2 * 2)
    return tuple(min(1 + step * i, depth - 1) for i in range(count))


def pi3_config_from_shapes(shapes: Shapes) -> Pi3Config | None:
    """Recognise the sizes of a Pi3 from the shapes of its tensors.

    Shapes do not tell the number of heads outside the decoder: they are taken to have one size
    everywhere.

    Args:
        shapes: Key to shape of every tensor of a file.

    Returns:
        The sizes, or ``None`` if a tensor that tells one of them is missing or has the wrong number
        of axes.
    """
    try:
        sizes, _ = _common_sizes(shapes)
        return Pi3Config(**sizes)
    except (KeyError, ValueError, ZeroDivisionError):
        return None


def pi3x_config_from_shapes(shapes: Shapes) -> Pi3XConfig | None:
    """Recognise the sizes of a Pi3X from the shapes of its tensors, as `pi3_config_from_shapes`.

    Shapes do not tell either where poses are told: after blocks at the published fractions of the
    depth. A file without what conditions need gives a network that can be told nothing.
    """
    try:
        sizes, head_size = _common_sizes(shapes)
        widths = [shapes[f"point_head.upsample_blocks.{level}.0.1.weight"][0] for level in range(3)]
        last_width, _, _, _ = shapes["point_head.output_block.0.0.weight"]
        metric_dim, _ = shapes["metric_decoder.projects_x.weight"]
        has_conditions = "depth_emb" in shapes
        num_injections = count_blocks(shapes, r"pose_inject_blk\.(\d+)\.") if has_conditions else 5
        return Pi3XConfig(
            **sizes,
            upsample_widths=(widths[0], widths[1], widths[2]),
            last_width=last_width,
            metric_dim=metric_dim,
            metric_heads=metric_dim // head_size,
            metric_depth=count_blocks(shapes, r"metric_decoder\.blocks\.(\d+)\."),
            has_conditions=has_conditions,
            inject_layers=spread_injections(sizes["depth"], num_injections),
        )
    except (KeyError, ValueError, ZeroDivisionError):
        return None


def _common_sizes(shapes: Shapes) -> tuple[dict[str, Any], int]:
    """Return what both networks have in common, and the channels of a head."""
    embed_dim, _, patch_size, _ = shapes["encoder.patch_embed.proj.weight"]
    _, num_positions, _ = shapes["encoder.pos_embed"]
    _, _, num_registers, _ = shapes["register_token"]
    (head_size,) = shapes["decoder.0.attn.q_norm.weight"]
    head_dim, _ = shapes["point_decoder.projects.weight"]
    camera_dim, _ = shapes["camera_decoder.linear_out.weight"]
    sizes = {
        "image_size": image_size_from(num_positions, patch_size),
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "encoder_depth": count_blocks(shapes, r"encoder\.blocks\.(\d+)\."),
        "encoder_heads": embed_dim // head_size,
        "depth": count_blocks(shapes, r"decoder\.(\d+)\."),
        "num_heads": embed_dim // head_size,
        "num_registers": num_registers,
        "head_dim": head_dim,
        "head_heads": head_dim // head_size,
        "head_depth": count_blocks(shapes, r"point_decoder\.blocks\.(\d+)\."),
        "camera_dim": camera_dim,
    }
    return sizes, head_size


def _check_heads(width_name: str, width: int, heads_name: str, heads: int) -> None:
    """Raise ``ValueError`` unless heads can be rotated: each needs a multiple of 4 channels."""
    if heads < 1 or width % heads or width // heads % 4:
        raise ValueError(
            f"`{width_name}` must be `{heads_name}` times a multiple of 4, got {width} and {heads}."
        )
