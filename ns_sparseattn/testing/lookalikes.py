# SPDX-License-Identifier: Apache-2.0
"""Small models with the structure of VGGT, Pi3 and MapAnything as their authors publish them.

Attribute names, argument names, order of tokens and order of blocks are those of the originals, as
far as the global attention depends on them; encoders and heads are a single layer. Weights are
random. They stand in for the originals where those are not installed.

Axes: ``B`` scenes, ``F`` frames, ``H`` x ``W`` pixels, ``T`` tokens of a frame, ``N`` tokens of a
sequence, ``C`` channels, ``gh`` x ``gw`` patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.rope import apply_rope, grid_positions, rope_table

_DIM = 64
_NUM_HEADS = 2
_PATCH = 14


class Rope(nn.Module):
    """Rotates heads by the positions of their tokens, the same in every sequence of a batch."""

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Rotate ``[B, h, N, D]`` by ``[B, N, 2]``."""
        return apply_rope(tokens, rope_table(positions[0], tokens.shape[-1], dtype=tokens.dtype))


class _FusedAttention(nn.Module):
    """Self-attention from one projection; subclasses differ in arguments and casts."""

    def __init__(self, rope: Rope | None, *, has_qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = _NUM_HEADS
        self.head_dim = _DIM // _NUM_HEADS
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(_DIM, 3 * _DIM)
        self.q_norm = nn.LayerNorm(self.head_dim) if has_qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if has_qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(_DIM, _DIM)
        self.proj_drop = nn.Dropout(0.0)
        self.rope = rope

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys after their norms, and values: ``[B, h, N, D]``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def join(self, heads: Tensor) -> Tensor:
        """Project heads ``[B, h, N, D]`` back to tokens."""
        return self.proj_drop(self.proj(heads.transpose(1, 2).flatten(2)))


class VggtAttention(_FusedAttention):
    """Rotates before any cast; can spell out the softmax instead of calling torch's operation."""

    def __init__(self, rope: Rope | None) -> None:
        super().__init__(rope, has_qk_norm=True)
        self.fused_attn = True

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        """Attend among the tokens ``[B, N, C]``."""
        q, k, v = self.split(x)
        if self.rope is not None:
            q, k = self.rope(q, pos), self.rope(k, pos)
        if not self.fused_attn:
            return self.join(torch.softmax(q * self.scale @ k.transpose(-2, -1), dim=-1) @ v)
        dropout = self.attn_drop.p if self.training else 0.0
        return self.join(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout))


class Pi3Attention(_FusedAttention):
    """Casts queries and keys to the values' dtype before rotating them."""

    def __init__(self, rope: Rope | None) -> None:
        super().__init__(rope, has_qk_norm=True)

    def forward(self, x: Tensor, attn_bias: None = None, xpos: Tensor | None = None) -> Tensor:
        """Attend among the tokens ``[B, N, C]``."""
        q, k, v = self.split(x)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if self.rope is not None:
            q, k = self.rope(q, xpos), self.rope(k, xpos)
        return self.join(F.scaled_dot_product_attention(q, k, v))


class MapAnythingAttention(_FusedAttention):
    """Has neither q/k norm nor rotation, and states its scale."""

    def __init__(self, rope: None = None) -> None:
        super().__init__(rope, has_qk_norm=False)

    def forward(self, x: Tensor, xpos: list[None] | None = None) -> Tensor:
        """Attend among the tokens ``[B, N, C]``."""
        q, k, v = self.split(x)
        return self.join(F.scaled_dot_product_attention(q, k, v, dropout_p=0.0, scale=self.scale))


class LookalikeBlock(nn.Module):
    """A transformer block; what follows the tokens is handed to its attention."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_DIM)
        self.attn = attention
        self.norm2 = nn.LayerNorm(_DIM)
        self.mlp = nn.Sequential(nn.Linear(_DIM, 2 * _DIM), nn.GELU(), nn.Linear(2 * _DIM, _DIM))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the block to ``[B, N, C]``."""
        x = x + self.attn(self.norm1(x), *args, **kwargs)
        return x + self.mlp(self.norm2(x))


def _blocks(attention: Callable[[Rope | None], nn.Module], rope: Rope | None, n: int) -> Any:
    return nn.ModuleList(LookalikeBlock(attention(rope)) for _ in range(n))


def _positions(images: Tensor, num_special: int) -> Tensor:
    grid = images.shape[-2] // _PATCH, images.shape[-1] // _PATCH
    one = grid_positions(*grid, num_special, device=images.device)
    return one.expand(images.shape[0] * images.shape[1], -1, -1)


class AggregatorLookalike(nn.Module):
    """VGGT's aggregator: pairs of a frame block and a global block in two lists."""

    def __init__(self, depth: int, num_registers: int) -> None:
        super().__init__()
        self.patch_size = _PATCH
        self.patch_start_idx = 1 + num_registers
        self.rope = Rope()
        self.patch_embed = nn.Conv2d(3, _DIM, _PATCH, _PATCH)
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, _DIM))
        self.register_token = nn.Parameter(torch.randn(1, 2, num_registers, _DIM))
        self.frame_blocks = _blocks(VggtAttention, self.rope, depth)
        self.global_blocks = _blocks(VggtAttention, self.rope, depth)

    def forward(
        self,
        images: Tensor,  # [B, F, 3, H, W]
    ) -> tuple[list[Tensor], int]:
        """Return the tokens after each pair of blocks, and where the patches start."""
        batch, num_frames = images.shape[:2]
        patches = self.patch_embed(images.flatten(0, 1)).flatten(2).transpose(1, 2)
        special = torch.cat([self.camera_token, self.register_token], dim=2)
        special = torch.cat([special[:, :1], special[:, 1:].expand(-1, num_frames - 1, -1, -1)], 1)
        special = special.expand(batch, -1, -1, -1).flatten(0, 1)
        x = torch.cat([special, patches], dim=1)  # [B F, T, C]
        pos = _positions(images, self.patch_start_idx)
        outputs = []
        for frame_block, global_block in zip(self.frame_blocks, self.global_blocks, strict=True):
            x = of_frame = frame_block(x, pos=pos)
            whole = x.unflatten(0, (batch, -1)).flatten(1, 2)
            whole = global_block(whole, pos=pos.unflatten(0, (batch, -1)).flatten(1, 2))
            x = whole.unflatten(1, (num_frames, -1)).flatten(0, 1)
            outputs.append(torch.cat([of_frame, x], dim=-1).unflatten(0, (batch, -1)))
        return outputs, self.patch_start_idx


class VggtLookalike(nn.Module):
    """VGGT: an aggregator and heads."""

    def __init__(self, depth: int = 3, num_registers: int = 4) -> None:
        super().__init__()
        self.aggregator = AggregatorLookalike(depth, num_registers)
        self.head = nn.Linear(2 * _DIM, 4)

    def forward(self, images: Tensor, query_points: Tensor | None = None) -> dict[str, Tensor]:
        """Predict something from images ``[B, F, 3, H, W]`` or ``[F, 3, H, W]``."""
        if images.ndim == 4:
            images = images[None]
        outputs, start = self.aggregator(images)
        return {"points": self.head(outputs[-1][:, :, start:]), "pose": outputs[-1][:, :, 0]}


class Pi3Lookalike(nn.Module):
    """Pi3: one list of blocks, of which the odd ones are global."""

    def __init__(self, depth: int = 6, num_registers: int = 5) -> None:
        super().__init__()
        self.patch_size = _PATCH
        self.patch_start_idx = num_registers
        self.rope = Rope()
        self.encoder = nn.Conv2d(3, _DIM, _PATCH, _PATCH)
        self.register_token = nn.Parameter(torch.randn(1, 1, num_registers, _DIM))
        self.decoder = _blocks(Pi3Attention, self.rope, depth)
        self.point_head = nn.Linear(_DIM, 3)

    def decode(self, hidden: Tensor, num_frames: int, pos: Tensor) -> Tensor:
        """Run all blocks on patches ``[B F, P, C]``."""
        registers = self.register_token[0].expand(len(hidden), -1, -1)
        hidden = torch.cat([registers, hidden], dim=1)
        num_tokens = hidden.shape[1]
        for index, block in enumerate(self.decoder):
            length = num_frames * num_tokens if index % 2 else num_tokens
            hidden = hidden.reshape(-1, length, _DIM)
            hidden = block(hidden, xpos=pos.reshape(-1, length, 2))
        return hidden.reshape(-1, num_tokens, _DIM)

    def forward(
        self,
        imgs: Tensor,  # [B, F, 3, H, W]
        depths: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict something from images."""
        patches = self.encoder(imgs.flatten(0, 1)).flatten(2).transpose(1, 2)
        hidden = self.decode(patches, imgs.shape[1], _positions(imgs, self.patch_start_idx))
        return {"points": self.point_head(hidden).unflatten(0, imgs.shape[:2])}


@dataclass
class MultiViewInput:
    """What MapAnything's multi-view transformer is called with."""

    features: list[Tensor]  # F times [B, C, gh, gw]
    additional_input_tokens_per_view: list[Tensor] | None = None  # F times [B, C, T]
    additional_input_tokens: Tensor | None = None  # [B, C, T]


class MultiViewLookalike(nn.Module):
    """MapAnything's multi-view transformer: one list of blocks, of which the even are global."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.self_attention_blocks = _blocks(lambda rope: MapAnythingAttention(), None, depth)
        self.use_pe_for_non_reference_views = False
        self.register_buffer("view_pos_table", torch.randn(1, _DIM))

    def forward(self, model_input: MultiViewInput) -> tuple[Tensor, Tensor]:
        """Return the tokens of all views ``[B, F, T, C]`` and those without a view."""
        views = [view.flatten(2) for view in model_input.features]
        if model_input.additional_input_tokens_per_view is not None:
            extra = model_input.additional_input_tokens_per_view
            views = [torch.cat(pair, dim=2) for pair in zip(views, extra, strict=True)]
        x = torch.stack(views, dim=1).transpose(2, 3)  # [B, F, T, C]
        batch, num_frames = x.shape[:2]
        assert isinstance(self.view_pos_table, Tensor)
        x = torch.cat([x[:, :1] + self.view_pos_table[0], x[:, 1:]], dim=1)
        trailing = x.new_zeros(batch, 0, _DIM)
        if model_input.additional_input_tokens is not None:
            trailing = model_input.additional_input_tokens.transpose(1, 2)
        for index, block in enumerate(self.self_attention_blocks):
            if index % 2:
                frames = block(x.flatten(0, 1), [None] * num_frames)
                x = frames.unflatten(0, (batch, num_frames))
            else:
                whole = torch.cat([x.flatten(1, 2), trailing], dim=1)
                whole = block(whole, [None] * num_frames)
                trailing = whole[:, x.shape[1] * x.shape[2] :]
                x = whole[:, : x.shape[1] * x.shape[2]].unflatten(1, (num_frames, -1))
        return x, trailing


class MapAnythingLookalike(nn.Module):
    """MapAnything: a multi-view transformer with a scale token.

    Args:
        depth: Blocks.
        has_view_token: Whether each view has an extra token after its patches, as from V1.1 on.
    """

    def __init__(self, depth: int = 5, *, has_view_token: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, _DIM, _PATCH, _PATCH)
        self.scale_token = nn.Parameter(torch.randn(_DIM))
        self.has_view_token = has_view_token
        self.info_sharing = MultiViewLookalike(depth)

    def forward(self, views: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Predict something from views with an ``img`` ``[B, 3, H, W]`` each."""
        features = [self.encoder(view["img"]) for view in views]
        tokens, scale = self.info_sharing(
            MultiViewInput(
                features=features,
                additional_input_tokens_per_view=(
                    [feature.mean((2, 3))[..., None] for feature in features]
                    if self.has_view_token
                    else None
                ),
                additional_input_tokens=self.scale_token[:, None].expand(len(features[0]), -1, -1),
            )
        )
        return {"points": tokens, "scale": scale}
