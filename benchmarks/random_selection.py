# SPDX-License-Identifier: Apache-2.0
"""A selection that looks at nothing: the floor that any other must beat. For measurements alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ns_sparseattn.attention.block_map import BlockMap
from ns_sparseattn.attention.selection import select_blocks


class RandomSelection:
    """Picks as many key blocks as `select_blocks` would, whichever.

    Args:
        seed: Of all picks, which follow from it and the order of the calls.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(
        self,
        q: Tensor,  # [B, H, Nq, D]
        k: Tensor,  # [B, H, Nk, D]
        *,
        key_mask: Tensor | None = None,  # [B, Nk] bool
        **options: Any,
    ) -> BlockMap:
        """Select; arguments and result are those of `select_blocks`."""
        counts = select_blocks(q, k, key_mask=key_mask, **options).counts  # [B, H, R]
        full, sinks = options["num_full_q_blocks"], options["num_sink_k_blocks"]
        block_q, block_k = options["block_q"], options["block_k"]
        num_rows, num_k_blocks = counts.shape[2] + full, -(-k.shape[2] // block_k)
        draws = torch.rand(
            (*counts.shape[:2], num_rows, num_k_blocks), generator=self._generator
        ).to(q.device)
        draws[..., num_k_blocks - sinks :] = 2.0  # No list names a sink.
        if key_mask is not None:
            padded = torch.nn.functional.pad(key_mask, (0, num_k_blocks * block_k - k.shape[2]))
            is_empty = ~padded.unflatten(1, (num_k_blocks, block_k)).any(-1)  # [B, NK]
            draws.masked_fill_(is_empty[:, None, None], 1.0)
        place = draws.argsort(-1).argsort(-1)
        wanted = torch.nn.functional.pad(counts, (0, full))
        return BlockMap.from_mask(
            place < wanted[..., None],
            block_q,
            block_k,
            num_full_q_blocks=full,
            num_sink_k_blocks=sinks,
        )
