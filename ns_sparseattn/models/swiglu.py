# SPDX-License-Identifier: Apache-2.0
"""The gated MLP of the largest DINOv2 encoder: ``w3(silu(a) * b)`` with ``[a | b] = w12(x)``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_HIDDEN_MULTIPLE = 8


def swiglu_hidden(dim_hidden: int) -> int:
    """Return the hidden width that has about the parameters of an ungated MLP of ``dim_hidden``.

    Two thirds, because there are three matrices instead of two, rounded up to a multiple of 8 as in
    the published networks (1536 channels: 4096 instead of 6144).
    """
    return -(-int(dim_hidden * 2 / 3) // _HIDDEN_MULTIPLE) * _HIDDEN_MULTIPLE


class SwiGlu(nn.Module):
    """Gated MLP whose two input projections are one matrix."""

    def __init__(self, dim: int, dim_hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * dim_hidden)
        self.w3 = nn.Linear(dim_hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gate to the last axis."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)
