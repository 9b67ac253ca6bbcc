# SPDX-License-Identifier: Apache-2.0
"""Global layers narrowed to the frames themselves: cheap, exact, without any block selection.

Axes: ``B`` batch, ``H`` heads, ``N`` tokens in the model's order, ``F`` frames, ``T`` tokens of a
frame, ``D`` head size.
"""

from __future__ import annotations

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
) -> tuple[Tensor, float]:
    """Attend within each frame, on request also to the first frame.

    Tokens without a frame (`TokenLayout.num_trailing`) attend to everything and are attended to by
    everyone.

    Returns:
        ``[B, H, N, D]``, and the share of all (query, key) pairs that were computed.
    """
    of_frames = tokens.num_frames * tokens.tokens_per_frame
    q_frames, k_frames, v_frames = (_split_frames(x[:, :, :of_frames], tokens) for x in (q, k, v))
    k_shared, v_shared = (x[:, None, :, of_frames:] for x in (k, v))  # [B, 1, H, trailing, D]
    if with_first_frame:
        # The first frame is its own first frame: it must not count its keys twice.
        first = _attend_with(
            q_frames[:, :1], (k_frames[:, :1], k_shared), (v_frames[:, :1], v_shared)
        )
        others = _attend_with(
            q_frames[:, 1:],
            (k_frames[:, 1:], k_frames[:, :1], k_shared),
            (v_frames[:, 1:], v_frames[:, :1], v_shared),
        )
        out = torch.cat([first, others], dim=1)
    else:
        out = _attend_with(q_frames, (k_frames, k_shared), (v_frames, v_shared))
    out = out.transpose(1, 2).flatten(2, 3)
    if tokens.num_trailing:
        out = torch.cat([out, dense_attention(q[:, :, of_frames:], k, v)], dim=2)
    return out, _density(tokens, with_first_frame)


def _split_frames(x: Tensor, tokens: TokenLayout) -> Tensor:
    """Turn ``[B, H, F * T, D]`` into ``[B, F, H, T, D]``."""
    return x.unflatten(2, (tokens.num_frames, tokens.tokens_per_frame)).transpose(1, 2)


def _attend_with(q: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> Tensor:
    """Attend per frame to keys that are joined; those with one frame are shared by all of ``q``."""
    batch, num_frames = q.shape[:2]
    if num_frames == 0:
        return q
    k, v = (
        torch.cat([x.expand(-1, num_frames, -1, -1, -1) for x in parts], dim=3).flatten(0, 1)
        for parts in (keys, values)
    )
    # torch's fused attention wants exactly one batch axis before the heads.
    return dense_attention(q.flatten(0, 1), k, v).unflatten(0, (batch, num_frames))


def _density(tokens: TokenLayout, with_first_frame: bool) -> float:
    per_frame, frames = tokens.tokens_per_frame, tokens.num_frames
    seen = frames * per_frame + (frames - 1) * per_frame * with_first_frame
    of_frames = per_frame * (seen + frames * tokens.num_trailing)
    return (of_frames + tokens.num_trailing * tokens.num_tokens) / tokens.num_tokens**2
