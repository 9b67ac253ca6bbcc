# SPDX-License-Identifier: Apache-2.0
"""Global layers narrowed to the frames themselves: cheap, exact, without any block selection.

Axes: ``B`` batch, ``H`` heads, ``N`` tokens in the model's order, ``F`` frames, ``T`` tokens of a
frame, ``D`` head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .dense import dense_attention
from .layout import TokenLayout


def frame_attention(
    q: Tensor,  # [B, H, N, D]
    k: Tensor,  # [B, H, N, D]
    v: Tensor,  # [B, H, N, D]
    tokens: TokenLayout,
    *,
    with_first_frame: bool = False,
    key_mask: Tensor | None = None,  # [B, N] bool
) -> tuple[Tensor, float]:
    """Attend within each frame, on request also to the first frame.

    Tokens without a frame (`TokenLayout.num_trailing`) attend to everything and are attended to by
    everyone. Keys outside the mask are attended to by nobody.

    Returns:
        ``[B, H, N, D]``, and the share of all (query, key) pairs that were computed.
    """
    of_frames = tokens.num_frames * tokens.tokens_per_frame
    q_frames, k_frames, v_frames = (_split_frames(x[:, :, :of_frames], tokens) for x in (q, k, v))
    own = _Keys(k_frames, v_frames, None)
    # Keys of tokens without a frame: [B, 1, H, trailing, D].
    shared = _Keys(k[:, None, :, of_frames:], v[:, None, :, of_frames:], None)
    if key_mask is not None:
        frame_shape = (tokens.num_frames, tokens.tokens_per_frame)
        own = replace(own, mask=key_mask[:, :of_frames].unflatten(1, frame_shape))
        shared = replace(shared, mask=key_mask[:, None, of_frames:])
    if with_first_frame:
        # The first frame is its own first frame: it must not count its keys twice.
        reference = own.of(slice(1))
        first = _attend_with(q_frames[:, :1], (reference, shared))
        others = _attend_with(q_frames[:, 1:], (own.of(slice(1, None)), reference, shared))
        out = torch.cat([first, others], dim=1)
    else:
        out = _attend_with(q_frames, (own, shared))
    out = out.transpose(1, 2).flatten(2, 3)
    if tokens.num_trailing:
        trailing = dense_attention(q[:, :, of_frames:], k, v, key_mask=key_mask)
        out = torch.cat([out, trailing], dim=2)
    return out, _density(tokens, with_first_frame)


def _split_frames(x: Tensor, tokens: TokenLayout) -> Tensor:
    """Turn ``[B, H, F * T, D]`` into ``[B, F, H, T, D]``."""
    return x.unflatten(2, (tokens.num_frames, tokens.tokens_per_frame)).transpose(1, 2)


@dataclass(frozen=True)
class _Keys:
    """Keys and values of some frames, and which of them there are."""

    k: Tensor  # [B, F, H, T, D]
    v: Tensor  # [B, F, H, T, D]
    mask: Tensor | None  # [B, F, T] bool

    def of(self, frames: slice) -> _Keys:
        """Return those of some of the frames."""
        mask = None if self.mask is None else self.mask[:, frames]
        return _Keys(self.k[:, frames], self.v[:, frames], mask)


def _attend_with(q: Tensor, parts: tuple[_Keys, ...]) -> Tensor:
    """Attend per frame to keys that are joined; those with one frame are shared by all of ``q``."""
    batch, num_frames = q.shape[:2]
    if num_frames == 0:
        return q
    k, v = (
        torch.cat([x.expand(-1, num_frames, -1, -1, -1) for x in of_parts], dim=3).flatten(0, 1)
        for of_parts in ([part.k for part in parts], [part.v for part in parts])
    )
    masks = [part.mask.expand(-1, num_frames, -1) for part in parts if part.mask is not None]
    key_mask = torch.cat(masks, dim=2).flatten(0, 1) if masks else None
    # torch's fused attention wants exactly one batch axis before the heads.
    out = dense_attention(q.flatten(0, 1), k, v, key_mask=key_mask)
    return out.unflatten(0, (batch, num_frames))


def _density(tokens: TokenLayout, with_first_frame: bool) -> float:
    per_frame, frames = tokens.tokens_per_frame, tokens.num_frames
    seen = frames * per_frame + (frames - 1) * per_frame * with_first_frame
    of_frames = per_frame * (seen + frames * tokens.num_trailing)
    return (of_frames + tokens.num_trailing * tokens.num_tokens) / tokens.num_tokens**2
