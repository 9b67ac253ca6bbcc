# SPDX-License-Identifier: Apache-2.0
"""Metric scale of Pi3X: one learned token looks at all tokens of a scene.

Axes: ``B`` scenes, ``F`` frames, ``T`` tokens of a frame, ``C`` channels, ``h`` heads, ``D`` head
size.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..attention.dense import dense_attention
from .block import LayerNorm, Mlp
from .pi3_config import NORM_EPS
from .rope import RopeTable, apply_rope

_MLP_RATIO = 4


class _CrossAttention(nn.Module):
    """Attention of one token to those of a scene."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,  # [B, 1, C]
        context: Tensor,  # [B, F, T, C]
        rope: RopeTable,
        key_mask: Tensor | None,  # [B, F, T] bool
    ) -> Tensor:
        # The token sits at position (0, 0), where the rotation is the identity.
        q = self._split(self.q_proj(x).unsqueeze(1))  # [B, 1, h, 1, D]
        k, v = self._split(self.k_proj(context)), self._split(self.v_proj(context))
        k = apply_rope(k, rope).to(v.dtype)
        k, v = (part.transpose(1, 2).flatten(2, 3) for part in (k, v))  # [B, h, F * T, D]
        mask = None if key_mask is None else key_mask.flatten(1)
        attended = dense_attention(q[:, 0], k, v, key_mask=mask)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


class _CrossBlock(nn.Module):
    """Cross-attention and an MLP, each around which the token is added."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm2 = LayerNorm(dim, eps=NORM_EPS)
        self.norm_y = LayerNorm(dim, eps=NORM_EPS)
        self.norm3 = LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn = _CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, _MLP_RATIO * dim, dim)

    def forward(
        self, x: Tensor, context: Tensor, rope: RopeTable, key_mask: Tensor | None
    ) -> Tensor:
        x = x + self.cross_attn(self.norm2(x), self.norm_y(context), rope, key_mask)
        return x + self.mlp(self.norm3(x))


class MetricDecoder(nn.Module):
    """Gather from all tokens of a scene what tells its size."""

    def __init__(self, *, dim_in: int, dim: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.projects_x = nn.Linear(dim_in, dim)
        self.projects_y = nn.Linear(dim_in, dim)
        self.blocks = nn.ModuleList(_CrossBlock(dim, num_heads) for _ in range(depth))
        self.linear_out = nn.Linear(dim, dim)

    def forward(
        self,
        token: Tensor,  # [B, 1, C]
        context: Tensor,  # [B, F, T, C]
        rope: RopeTable,
        key_mask: Tensor | None = None,  # [B, F, T] bool
    ) -> Tensor:
        """Return what the token has gathered, ``[B, 1, dim]``.

        Args:
            token: The learned token of each scene.
            context: All tokens of each scene.
            rope: Rotations of one frame's tokens, for the head size of this decoder.
            key_mask: False for tokens that are left out.
        """
        x, context = self.projects_x(token), self.projects_y(context)
        for block in self.blocks:
            x = block(x, context, rope, key_mask)
        return self.linear_out(x)
