# SPDX-License-Identifier: Apache-2.0
"""Tile, warps and stages for each kind of GPU: a table, so that nothing is tried at run time.

Source of every row: compiled, not timed. Each is the largest tile, with the fewest warps, whose
code for that kind of GPU keeps all 16-bit work in registers (triton 3.7.1, ptxas 12.8), which
``tests/kernels/test_ahead_of_time.py`` holds. Rows that are timed will name their measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class ForwardConfig:
    """How the forward kernel is compiled."""

    tile_q: int
    """Queries of a program, at most a query block."""
    small_k: int
    """Keys of a step in the loops that mask, at most a key block and 64."""
    num_warps: int
    num_stages: int
    """Key blocks that are loaded ahead, plus one."""
    programs_per_multiprocessor: int
    """Programs that fit onto a multiprocessor by registers and shared memory; used to judge when a
    full row would be the tail."""


def _row(
    small_k: int, num_warps: int, num_stages: int, programs: int, tile_q: int = 128
) -> ForwardConfig:
    return ForwardConfig(
        tile_q=tile_q,
        small_k=small_k,
        num_warps=num_warps,
        num_stages=num_stages,
        programs_per_multiprocessor=programs,
    )


# A tile reads its key blocks from the second-level cache once, so tiles of fewer queries would read
# more. Where four warps are enough, the second program on the multiprocessor computes its softmax
# while the first one multiplies; within a program the compiler does not overlap the two.
_HOPPER = {
    32: _row(small_k=32, num_warps=4, num_stages=3, programs=2),
    64: _row(small_k=32, num_warps=4, num_stages=3, programs=2),
    # With four warps 64 bytes of registers spill.
    128: _row(small_k=32, num_warps=8, num_stages=2, programs=1),
}
_AMPERE = {
    32: _row(small_k=32, num_warps=4, num_stages=3, programs=2),
    64: _row(small_k=32, num_warps=4, num_stages=3, programs=2),
    # With four warps 160 bytes spill, with steps of 32 keys in the loops that mask 8 bytes.
    128: _row(small_k=16, num_warps=8, num_stages=3, programs=1),
}
# 99 KB of shared memory instead of 163 KB.
_CONSUMER = {
    32: _row(small_k=32, num_warps=4, num_stages=3, programs=2),
    # With four warps 24 bytes spill, here but not on 8.0.
    64: _row(small_k=32, num_warps=8, num_stages=3, programs=1),
    128: _row(small_k=16, num_warps=8, num_stages=2, programs=1),
}
FORWARD = {(8, 0): _AMPERE, (8, 6): _CONSUMER, (8, 9): _CONSUMER, (9, 0): _HOPPER}
"""By compute capability, then head size, for float16 and bfloat16."""
FORWARD_FLOAT32 = {
    32: _row(small_k=16, num_warps=4, num_stages=1, programs=1, tile_q=16),
    64: _row(small_k=16, num_warps=4, num_stages=1, programs=1, tile_q=16),
    128: _row(small_k=16, num_warps=8, num_stages=1, programs=1, tile_q=16),
}
"""By head size, on every GPU: without tensor cores, to be right rather than fast."""
SHARED_MEMORY = {(8, 0): 166_912, (8, 6): 101_376, (8, 9): 101_376, (9, 0): 232_448}
"""Bytes of shared memory that one program may use (CUDA C++ Programming Guide, table of technical
specifications by compute capability)."""


def forward_config(
    capability: tuple[int, int], head_size: int, dtype: torch.dtype
) -> ForwardConfig:
    """Return the table's row for a GPU.

    Args:
        capability: Compute capability, for example ``(9, 0)``. One that the table lacks gets the
            row of 8.6, which needs least shared memory.
        head_size: 32, 64 or 128.
        dtype: float16, bfloat16 or float32.
    """
    if dtype == torch.float32:
        return FORWARD_FLOAT32[head_size]
    return FORWARD.get(capability, _CONSUMER)[head_size]


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How the selection kernels are compiled."""

    tile_rows: int
    """Query blocks of a program."""
    tile_columns: int
    """Key blocks of a step."""
    num_warps: int
    num_stages: int


MANY_ROWS = 1 << 14
"""Rows from which programs take many: there are then enough programs for every GPU, and the keys
are read less often. An estimate, not timed."""
SELECTION_FEW_ROWS = SelectionConfig(tile_rows=16, tile_columns=64, num_warps=4, num_stages=2)
SELECTION_MANY_ROWS = SelectionConfig(tile_rows=64, tile_columns=32, num_warps=4, num_stages=2)
"""For head sizes up to 64; above, 64 rows spill."""


def selection_config(head_size: int, num_rows: int) -> SelectionConfig:
    """Return how to compile the selection for so many query blocks of all heads together."""
    has_many = num_rows >= MANY_ROWS and head_size <= 64
    return SELECTION_MANY_ROWS if has_many else SELECTION_FEW_ROWS
