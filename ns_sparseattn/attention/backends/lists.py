# SPDX-License-Identifier: Apache-2.0
"""Block maps in the form that other people's kernels take: one padded list for each row.

Axes: ``B`` batch, ``H`` heads, ``NQ``/``NK`` query and key blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .inputs import AttentionInputs


@dataclass(frozen=True, kw_only=True)
class BlockLists:
    """The key blocks of each query block, ascending and packed to the left.

    Memory grows with ``NQ * NK``, unlike that of a `BlockMap`: 8.5 GB at a million tokens.
    """

    counts: Tensor  # [B, H, NQ] int32
    """Length of each list."""
    blocks: Tensor  # [B, H, NQ, NK] int32
    """Key blocks; what follows the first `counts` is every other block, to be ignored."""

    @classmethod
    def of_mask(cls, mask: Tensor) -> BlockLists:
        """Make lists of a boolean mask ``[B, H, NQ, NK]``."""
        order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
        return cls(
            counts=mask.sum(-1, dtype=torch.int32).contiguous(),
            blocks=order.to(torch.int32).contiguous(),
        )


def block_is_whole(inputs: AttentionInputs) -> Tensor:
    """Return ``[B, NK]`` booleans: whether all keys of a block exist."""
    block_map = inputs.block_map
    batch, num_k = inputs.k.shape[0], inputs.k.shape[2]
    exists = inputs.key_mask
    if exists is None:
        exists = torch.ones(batch, num_k, dtype=torch.bool, device=inputs.k.device)
    padded = F.pad(exists, (0, block_map.num_k_blocks * block_map.block_k - num_k))
    return padded.reshape(batch, block_map.num_k_blocks, block_map.block_k).all(-1)
