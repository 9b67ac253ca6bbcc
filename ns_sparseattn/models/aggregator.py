# SPDX-License-Identifier: Apache-2.0
"""Alternating attention: blocks within a frame, and over all frames with an exchangeable attention.

`run_frame_block` and `run_global_block` are what every model is made of; `Aggregator` is VGGT's
arrangement of them, under the names of its published weights.

Axes: ``B`` scenes, ``F`` frames, ``T = S + P`` tokens of a frame, special tokens first, ``C``
channels, ``h`` heads, ``N = F * T + R`` tokens of a scene in frame-major order, of which the ``R``
trailing ones have no frame, ``D`` head size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention import AttentionRun
from .block import Block, BlockConfig
from .compute import spans
from .rope import RopeTable
from .vit import VisionTransformer, VitConfig


@dataclass(frozen=True)
class AggregatorOutput:
    """Tokens after the tapped layers."""

    taps: dict[int, Tensor]
    """Layer index to ``[B, F, T, 2 C]``: output of its frame block, then of its global block."""
    last_special: Tensor  # [B, F, S, 2 C]
    """Special tokens after the last layer, float32."""


def run_frame_block(
    block: Block,
    x: Tensor,  # [B, F, T, C]
    rope: RopeTable | None,
    frames_per_chunk: int,
    key_mask: Tensor | None = None,  # [B, F, T] bool
) -> Tensor:
    """Apply a block within each frame. Tokens outside the mask are attended to by none.

    Without autograd ``x`` is overwritten and returned; with it, chunks are ignored and ``x`` is
    left alone.
    """
    # torch's fused attention wants exactly one batch axis before the heads.
    frames = x.flatten(0, 1)
    masks = None if key_mask is None else key_mask.flatten(0, 1)
    if torch.is_grad_enabled():
        return block(frames, rope, masks).unflatten(0, x.shape[:2])
    for start, stop in spans(len(frames), frames_per_chunk):
        mask = None if masks is None else masks[start:stop]
        frames[start:stop] = block(frames[start:stop], rope, mask)
    return frames.unflatten(0, x.shape[:2])


def run_global_block(
    block: Block,
    x: Tensor,  # [B, F, T, C]
    rope: RopeTable | None,
    frames_per_chunk: int,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Apply a block over all tokens of a scene: `run_global_block_with_trailing` without such."""
    trailing = x.new_empty(x.shape[0], 0, x.shape[-1])
    return run_global_block_with_trailing(block, x, trailing, rope, frames_per_chunk, attend)[0]


def run_global_block_with_trailing(
    block: Block,
    x: Tensor,  # [B, F, T, C]
    trailing: Tensor,  # [B, R, C]
    rope: RopeTable | None,
    frames_per_chunk: int,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Apply a block over all tokens of a scene, with the attention that the caller brings.

    Args:
        block: The block; everything but its attention runs over chunks of frames.
        x: Tokens. Without autograd they are overwritten and returned.
        trailing: Tokens that have no frame, there may be none; they follow all others and are not
            rotated.
        rope: Rotations of one frame's tokens; all frames share them.
        frames_per_chunk: Size of a chunk; ignored with autograd.
        attend: Takes queries, keys and values ``[B, h, N, D]`` after norm and rotation, returns
            ``[B, h, N, D]``, where ``N = F * T + R``.

    Returns:
        ``[B, F, T, C]``, and the trailing tokens ``[B, R, C]``.
    """
    num_frames, num_tokens = x.shape[1:3]
    num_framed = num_frames * num_tokens
    if torch.is_grad_enabled():
        frames_per_chunk = num_frames
    qkv: tuple[Tensor, ...] = ()
    for start, stop in spans(num_frames, frames_per_chunk):
        parts = block.project(x[:, start:stop], rope)  # each [B, f, h, T, D]
        if not qkv:
            batch, _, heads, _, size = parts[0].shape
            num_all = num_framed + trailing.shape[1]
            qkv = tuple(part.new_empty(batch, heads, num_all, size) for part in parts)
        for whole, part in zip(qkv, parts, strict=True):
            place = whole[:, :, start * num_tokens : stop * num_tokens]
            place.unflatten(2, (stop - start, num_tokens)).copy_(part.transpose(1, 2))
    if trailing.shape[1]:
        for whole, part in zip(qkv, block.project(trailing), strict=True):
            whole[:, :, num_framed:] = part
    attended = attend(*qkv)
    del qkv
    if trailing.shape[1]:
        trailing = block.finish(trailing, attended[:, :, num_framed:])
    attended = attended[:, :, :num_framed].unflatten(2, (num_frames, num_tokens))
    attended = attended.transpose(1, 2)  # [B, F, h, T, D]
    if torch.is_grad_enabled():
        return block.finish(x, attended), trailing
    for start, stop in spans(num_frames, frames_per_chunk):
        x[:, start:stop] = block.finish(x[:, start:stop], attended[:, start:stop])
    return x, trailing


class Aggregator(nn.Module):
    """VGGT's encoder and its pairs of frame and global blocks."""

    def __init__(self, *, vit: VitConfig, depth: int, num_heads: int, num_registers: int) -> None:
        super().__init__()
        block = BlockConfig(dim=vit.dim, num_heads=num_heads, has_qk_norm=True)
        self.patch_embed = VisionTransformer(vit)
        self.frame_blocks = nn.ModuleList(Block(block) for _ in range(depth))
        self.global_blocks = nn.ModuleList(Block(block) for _ in range(depth))
        # Of the two tokens on axis 1 the first frame takes the first, all other frames the second.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, vit.dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, num_registers, vit.dim))

    def special_tokens(self, num_frames: int) -> Tensor:
        """Return the special tokens of all frames, ``[1, F, S, C]``: camera token, registers."""
        tokens = torch.cat([self.camera_token, self.register_token], dim=2)
        return torch.cat([tokens[:, :1], tokens[:, 1:].expand(-1, num_frames - 1, -1, -1)], dim=1)

    def forward(
        self,
        x: Tensor,  # [B, F, T, C]
        run: AttentionRun,
        rope: RopeTable,
        *,
        taps: Collection[int],
        key_mask: Tensor | None = None,  # [B, F, T] bool
        tap_dtype: torch.dtype = torch.float32,
        frames_per_chunk: int,
        autocast: Callable[[], AbstractContextManager[object]],
        report: Callable[[int], None] = lambda done: None,
    ) -> AggregatorOutput:
        """Run all layers and keep what the heads need.

        Args:
            x: Special and patch tokens. Overwritten when autograd is off.
            run: Attention of the global layers.
            rope: Rotations of one frame's tokens.
            taps: Layers to keep.
            key_mask: False for tokens that none of their frame attends to.
            tap_dtype: Type to keep them in.
            frames_per_chunk: Frames processed together.
            autocast: Makes the context in which one block runs.
            report: Called with the number of finished layers.

        Returns:
            The tapped tokens.
        """
        depth = len(self.frame_blocks)
        kept: dict[int, Tensor] = {}
        last_special = x.new_empty(0)
        num_special = self.camera_token.shape[2] + self.register_token.shape[2]
        for layer, (frame_block, global_block) in enumerate(
            zip(self.frame_blocks, self.global_blocks, strict=True)
        ):
            assert isinstance(frame_block, Block)
            assert isinstance(global_block, Block)
            with autocast():
                x = run_frame_block(frame_block, x, rope, frames_per_chunk, key_mask)
            # The global block may overwrite x, so what is kept of it is copied first.
            frame_special = x[:, :, :num_special].clone() if layer == depth - 1 else None
            if layer in taps:
                kept[layer] = x.new_empty(*x.shape[:-1], 2 * x.shape[-1], dtype=tap_dtype)
                kept[layer][..., : x.shape[-1]] = x

            def attend(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                return run.attend(layer, q, k, v)

            with autocast():
                x = run_global_block(global_block, x, rope, frames_per_chunk, attend)
            if layer in taps:
                kept[layer][..., x.shape[-1] :] = x
            if frame_special is not None:
                last_special = torch.cat([frame_special, x[:, :, :num_special]], dim=-1)
            report(layer + 1)
        return AggregatorOutput(kept, last_special)
