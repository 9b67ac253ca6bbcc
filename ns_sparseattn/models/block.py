# SPDX-License-Identifier: Apache-2.0
"""The transformer block that all models share, split where attention can be exchanged.

A block is ``x + ls1(attention(norm1(x)))`` followed by ``x + ls2(mlp(norm2(x)))``.
`Attention.project` and `Attention.merge` are the two halves around the attention itself, so that a
caller may put any attention between them.

Axes: ``...`` any batch, ``T`` tokens, ``C`` channels, ``h`` heads, ``D`` head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.dense import dense_attention
from .rope import RopeTable, apply_rope
from .swiglu import SwiGlu, swiglu_hidden

MlpKind = Literal["gelu", "swiglu"]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Shape and options of a transformer block."""

    dim: int
    """Channels of a token."""
    num_heads: int
    """Attention heads; each has ``dim / num_heads`` channels."""
    norm_eps: float = 1e-5
    """Epsilon of the two layer norms."""
    mlp_ratio: int = 4
    """Width of the hidden layer of the MLP, in units of ``dim``."""
    mlp: MlpKind = "gelu"
    """Two linear layers around a GELU, or the gated kind with as many parameters."""
    has_qk_norm: bool = False
    """Whether queries and keys pass a layer norm per head (epsilon 1e-5) before the rotation."""
    rotates_in_value_dtype: bool = False
    """Whether queries and keys take the dtype of the values before they are rotated, as in Pi3,
    and not after. Makes a difference in 16-bit runs alone."""
    has_layer_scale: bool = True
    """Whether each branch is multiplied by a learned vector."""

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise ValueError(
                f"`dim` must be a multiple of `num_heads`, got {self.dim} and {self.num_heads}."
            )

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.dim // self.num_heads


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes and returns float32 for any input, as autocast on CUDA does.

    Stated here because autocast on the CPU leaves layer norms in the type of their input.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis."""
        return super().forward(input.float())


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last axis."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim_in, dim_hidden)
        self.fc2 = nn.Linear(dim_hidden, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers to the last axis."""
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.rotates_in_value_dtype = config.rotates_in_value_dtype
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.q_norm = LayerNorm(config.head_size) if config.has_qk_norm else nn.Identity()
        self.k_norm = LayerNorm(config.head_size) if config.has_qk_norm else nn.Identity()
        self.proj = nn.Linear(config.dim, config.dim)

    def project(
        self,
        x: Tensor,  # [..., T, C]
        rope: RopeTable | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, ``[..., h, T, D]`` in the dtype of the projection."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [..., T, 3, h, D]
        q, k, v = (part.transpose(-3, -2) for part in qkv.unbind(-3))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotates_in_value_dtype:
            q, k = q.to(v.dtype), k.to(v.dtype)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        # The norms raise 16-bit values to float32; attention wants one dtype.
        return q.to(v.dtype), k.to(v.dtype), v

    def merge(
        self,
        attended: Tensor,  # [..., h, T, D]
    ) -> Tensor:
        """Join the heads and project back to ``[..., T, C]``."""
        return self.proj(attended.transpose(-3, -2).flatten(-2))

    def forward(self, x: Tensor, rope: RopeTable | None = None) -> Tensor:
        """Attend among all tokens of ``x``, ``[..., T, C]``."""
        q, k, v = self.project(x, rope)
        return self.merge(F.scaled_dot_product_attention(q, k, v))


def _make_mlp(config: BlockConfig) -> nn.Module:
    hidden = config.mlp_ratio * config.dim
    if config.mlp == "swiglu":
        return SwiGlu(config.dim, swiglu_hidden(hidden))
    return Mlp(config.dim, hidden, config.dim)


class Block(nn.Module):
    """One transformer block; calling it attends among all tokens of the next-to-last axis."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = LayerNorm(dim, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(dim) if config.has_layer_scale else nn.Identity()
        self.norm2 = LayerNorm(dim, eps=config.norm_eps)
        self.mlp = _make_mlp(config)
        self.ls2 = LayerScale(dim) if config.has_layer_scale else nn.Identity()

    def project(self, x: Tensor, rope: RopeTable | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what an exchanged attention needs: queries, keys and values of ``norm1(x)``."""
        return self.attn.project(self.norm1(x), rope)

    def finish(
        self,
        x: Tensor,  # [..., T, C]
        attended: Tensor,  # [..., h, T, D]
    ) -> Tensor:
        """Return the block's output, given its input and what the attention made of `project`."""
        x = x + self.ls1(self.attn.merge(attended))
        return x + self.ls2(self.mlp(self.norm2(x)))

    def forward(
        self,
        x: Tensor,  # [F, T, C]
        rope: RopeTable | None = None,
        key_mask: Tensor | None = None,  # [F, T] bool
    ) -> Tensor:
        """Apply the block to ``x``; without a mask it may have any batch axes.

        Args:
            x: Tokens.
            rope: Rotations of the tokens.
            key_mask: False for tokens that none attends to.
        """
        q, k, v = self.project(x, rope)
        return self.finish(x, dense_attention(q, k, v, key_mask=key_mask))
