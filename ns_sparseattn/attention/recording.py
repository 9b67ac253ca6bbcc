# SPDX-License-Identifier: Apache-2.0
"""Look at the block maps that a model's global layers select, without touching the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .block_map import BlockMap

_RECORD: ContextVar[dict[int, BlockMap] | None] = ContextVar("block_maps", default=None)


@contextmanager
def record_block_maps() -> Iterator[dict[int, BlockMap]]:
    """Collect the block map of every sparse layer that runs inside.

    The maps refer to tokens in the block order of their layer's policy. They stay in memory, about
    four bytes for each block kept, until the dictionary goes.

    Yields:
        Maps by index of the global layer, filled while models run; of several runs, the last.

    Example:
        >>> import torch
        >>> from ns_sparseattn.attention import AttentionPlan, AttentionRun, TokenLayout
        >>> tokens = TokenLayout(num_frames=4, num_special=5, grid_height=8, grid_width=8)
        >>> q = torch.randn(1, 2, tokens.num_tokens, 32)
        >>> with record_block_maps() as maps:
        ...     out = AttentionRun(AttentionPlan.block_sparse(density=0.5), tokens, 1).attend(
        ...         0, q, q, q
        ...     )
        >>> maps[0].counts.shape
        torch.Size([1, 2, 2])
    """
    maps: dict[int, BlockMap] = {}
    token = _RECORD.set(maps)
    try:
        yield maps
    finally:
        _RECORD.reset(token)


def note_block_map(layer: int, block_map: BlockMap) -> None:
    """Add a layer's map to the record around the caller, if there is one."""
    maps = _RECORD.get()
    if maps is not None:
        maps[layer] = block_map
