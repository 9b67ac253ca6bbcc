# SPDX-License-Identifier: Apache-2.0
"""What `block_sparse_attention` hands to a backend, checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..block_map import BlockMap
from ..pooling import CoarseBlocks


@dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """One call of the operation. Shapes, dtypes and devices fit each other."""

    q: Tensor  # [B, H, Nq, D]
    k: Tensor  # [B, H, Nk, D]
    v: Tensor  # [B, H, Nk, D]
    block_map: BlockMap
    key_mask: Tensor | None = None  # [B, Nk] bool
    """True where a key exists; none if all do."""
    coarse: CoarseBlocks | None = None
    """What the blocks that a row leaves out contribute; none if nothing."""
    needs_lse: bool = True
    """Whether the caller wants the log-sum-exp; if not, a backend may return none."""

    @property
    def accumulate(self) -> torch.dtype:
        """The dtype of softmax and sums: float64 for float64, else float32."""
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    @property
    def scale(self) -> float:
        """What the dot products are multiplied with: ``1 / sqrt(D)``."""
        return self.q.shape[-1] ** -0.5
