# SPDX-License-Identifier: Apache-2.0
"""Camera head: refine one pose encoding per frame from the frames' camera tokens.

Axes: ``I`` iterations, ``B`` scenes, ``F`` frames, ``C`` channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import Block, BlockConfig, LayerNorm, Mlp

_MODULATION_EPS = 1e-6


class CameraHead(nn.Module):
    """Transformer blocks over the frames, applied repeatedly with the last estimate fed back."""

    def __init__(
        self, *, dim: int, num_heads: int, depth: int, num_iterations: int, encoding_size: int = 9
    ) -> None:
        super().__init__()
        self.num_iterations = num_iterations
        block = BlockConfig(dim=dim, num_heads=num_heads)
        self.token_norm = LayerNorm(dim)
        self.trunk_norm = LayerNorm(dim)
        self.trunk = nn.Sequential(*(Block(block) for _ in range(depth)))
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, encoding_size))
        self.embed_pose = nn.Linear(encoding_size, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.pose_branch = Mlp(dim, dim // 2, encoding_size)

    def forward(
        self,
        camera_tokens: Tensor,  # [B, F, C]
    ) -> Tensor:
        """Return the raw pose encoding after every iteration, ``[I, B, F, 9]``."""
        tokens = self.token_norm(camera_tokens)
        plain = F.layer_norm(tokens, tokens.shape[-1:], eps=_MODULATION_EPS)
        raw: Tensor | None = None
        estimates = []
        for _ in range(self.num_iterations):
            fed_back = self.empty_pose_tokens.expand(*tokens.shape[:2], -1) if raw is None else raw
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(fed_back)).chunk(3, dim=-1)
            x = gate * (plain * (1 + scale) + shift) + tokens
            delta = self.pose_branch(self.trunk_norm(self.trunk(x)))
            raw = delta if raw is None else raw + delta
            estimates.append(raw)
        return torch.stack(estimates)
