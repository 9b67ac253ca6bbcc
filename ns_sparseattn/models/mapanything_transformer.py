# SPDX-License-Identifier: Apache-2.0
"""MapAnything's multi-view transformer: global and frame blocks in turn, a scale token at the end.

Even blocks attend among all tokens of a scene, odd ones within each frame; the scale token takes
part in the even ones. There is no rotary embedding: a token knows its place from the encoder, and
whether it belongs to the first frame from a constant that is added there.

Axes: ``B`` scenes, ``F`` frames, ``T = P + S`` tokens of a frame, patches first, ``E`` channels of
the encoder, ``C`` of the transformer, ``N = F * T + 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention import AttentionRun
from .aggregator import run_frame_block, run_global_block_with_trailing
from .block import Block, LayerNorm
from .compute import spans
from .mapanything_config import BLOCK_NORM_EPS, MapAnythingConfig


@dataclass(frozen=True)
class TransformerOutput:
    """Tokens that the heads read, after the final norm, and layers that were asked for, before."""

    taps: dict[int, Tensor]
    """Layer to normalised patch tokens ``[B, F, P, C]``; the last layer is always there."""
    scale_token: Tensor  # [B, C]
    """Normalised."""
    layers: dict[int, Tensor]
    """Layer to tokens ``[B, N, C]``, the scale token last."""


class MultiViewTransformer(nn.Module):
    """The blocks between encoder and heads."""

    def __init__(self, config: MapAnythingConfig) -> None:
        super().__init__()
        dim = config.dim
        self.proj_embed = (
            nn.Identity() if config.embed_dim == dim else nn.Linear(config.embed_dim, dim)
        )
        # The sinusoid of position 0. On a named device, because the published weights carry it but
        # networks filled otherwise need it as well.
        first_frame = torch.tensor([0.0, 1.0], device="cpu").repeat(1, dim // 2)
        self.register_buffer("view_pos_table", first_frame)
        self.view_pos_table: Tensor
        self.self_attention_blocks = nn.ModuleList(Block(config.block) for _ in range(config.depth))
        self.norm = LayerNorm(dim, eps=BLOCK_NORM_EPS)

    def embed(
        self,
        x: Tensor,  # [B, F, T, E]
        *,
        has_first_frame: bool,
    ) -> Tensor:
        """Return tokens before the first block, ``[B, F, T, C]``.

        Args:
            x: Tokens of some frames.
            has_first_frame: Whether the first of them is the first of the scene, which is marked.
        """
        x = self.proj_embed(x)
        if not has_first_frame:
            return x
        return torch.cat([x[:, :1] + self.view_pos_table, x[:, 1:]], dim=1)

    def forward(
        self,
        x: Tensor,  # [B, F, T, C]
        scale_token: Tensor,  # [B, 1, C]
        run: AttentionRun,
        *,
        num_patches: int,
        taps: Collection[int],
        keep_layers: Collection[int] = (),
        key_mask: Tensor | None = None,  # [B, F, T] bool
        tap_dtype: torch.dtype = torch.float32,
        frames_per_chunk: int,
        autocast: Callable[[], AbstractContextManager[object]],
        report: Callable[[int], None] = lambda done: None,
    ) -> TransformerOutput:
        """Run all blocks and keep what the heads need.

        Args:
            x: Embedded tokens. Overwritten when autograd is off.
            scale_token: Embedded scale token.
            run: Attention of the global layers.
            num_patches: Patch tokens of a frame; its other tokens follow them.
            taps: Layers whose normalised patch tokens to keep beside the last.
            keep_layers: Layers whose tokens to keep as they are.
            key_mask: False for tokens that none of their frame attends to.
            tap_dtype: Type to keep taps in.
            frames_per_chunk: Frames processed together.
            autocast: Makes the context in which one block runs.
            report: Called with the number of finished layers.

        Returns:
            The kept tokens.
        """
        last = len(self.self_attention_blocks) - 1
        kept: dict[int, Tensor] = {}
        layers: dict[int, Tensor] = {}
        for layer, block in enumerate(self.self_attention_blocks):
            assert isinstance(block, Block)
            with autocast():
                if layer % 2:
                    x = run_frame_block(block, x, None, frames_per_chunk, key_mask)
                else:

                    def attend(q: Tensor, k: Tensor, v: Tensor, index: int = layer // 2) -> Tensor:
                        return run.attend(index, q, k, v)

                    x, scale_token = run_global_block_with_trailing(
                        block, x, scale_token, None, frames_per_chunk, attend
                    )
            if layer in taps or layer == last:
                kept[layer] = self._tap(x[:, :, :num_patches], tap_dtype, frames_per_chunk)
            if layer in keep_layers:
                layers[layer] = torch.cat([x.flatten(1, 2), scale_token], dim=1)
            report(layer + 1)
        return TransformerOutput(kept, self.norm(scale_token[:, 0]), layers)

    def _tap(self, patches: Tensor, dtype: torch.dtype, frames_per_chunk: int) -> Tensor:
        """Return normalised patch tokens in a type, made in chunks of frames."""
        kept = patches.new_empty(patches.shape, dtype=dtype)
        for start, stop in spans(patches.shape[1], frames_per_chunk):
            kept[:, start:stop] = self.norm(patches[:, start:stop])
        return kept
