# SPDX-License-Identifier: Apache-2.0
"""In which order the rows of block-sparse attention are launched, and into how many parts.

The hardware takes programs in launch order, each as soon as a place is free, so the order is the
schedule. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LONGEST_FIRST_BELOW = 100_000
"""Tokens below which rows are sorted by length. Keys and values of a head (25 MB at 100k tokens of
64 float16 numbers) then fit into half of an H200's second-level cache, so that jumping between
heads costs little and an even finish counts; above, neighbouring rows share what they read.
An estimate: it was not timed."""
MIN_PART_BLOCKS = 16
"""Key blocks of a part of a full row, at least: a shorter one is mostly start-up and merging. An
estimate: it was not timed."""
MAX_PARTS = 32
"""Parts of a full row, at most; bounds the memory that they take."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Order and parts of one launch."""

    order: Tensor | None  # [rows] int32
    """Listed rows in launch order; none for their own order: by batch slot, head, query block."""
    num_parts: int
    """Parts, along the keys, into which every full row is split."""


def plan_schedule(
    row_offsets: Tensor,  # [rows + 1] int64
    *,
    num_entries: int,
    num_full_rows: int,
    num_k_blocks: int,
    num_sink_k_blocks: int,
    num_tokens: int,
    num_slots: int,
) -> Schedule:
    """Choose the order and the parts of a launch.

    Full rows go first. One is split when it is longer than half of what each place has to do on
    average, for then it may still run when all others are done.

    Args:
        row_offsets: Start of each row's list.
        num_entries: List entries of all rows.
        num_full_rows: Rows that attend to everything.
        num_k_blocks: Key blocks of a full row.
        num_sink_k_blocks: Key blocks that every row attends to beside its list.
        num_tokens: Key tokens.
        num_slots: Programs that run at a time.
    """
    num_rows = row_offsets.shape[0] - 1
    order = None
    if num_rows > 1 and num_tokens < LONGEST_FIRST_BELOW:
        # Stable, so that repeated runs are the same.
        order = row_offsets.diff().argsort(descending=True, stable=True).to(torch.int32)
    blocks = num_entries + num_rows * num_sink_k_blocks + num_full_rows * num_k_blocks
    wanted_length = max(blocks // (2 * num_slots), MIN_PART_BLOCKS)
    num_parts = 1
    if num_full_rows and num_k_blocks > wanted_length:
        num_parts = min(-(-num_k_blocks // wanted_length), MAX_PARTS)
    return Schedule(order=order, num_parts=num_parts)
