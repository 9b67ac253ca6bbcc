# SPDX-License-Identifier: Apache-2.0
"""Block selection: the key blocks with the largest pooled attention, without a map of all scores.

Two kernels, each of which makes the pooled scores of some query blocks tile by tile, uses a tile
and forgets it. The first searches, per query block, the score at which to stop: every pass takes
three thresholds between one that is enough and one that is not, and keeps the quarter between them
that holds the answer, until at most one score, or only equal ones, lie between. The second writes
the ids, ascending.

Scores are float32 products of three tf32 ones each (their error is that of float32, not of tf32).

Axes: ``B`` batch, ``H`` heads, ``R`` query blocks, ``C`` key blocks, ``D`` head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import selection_config
from .devices import why_not_on

MAX_HEAD_SIZE = 128
_SIZES = ("num_heads", "num_rows", "num_columns")
"""Sizes that kernels are not compiled anew for: what is launched is what was compiled in tests."""
_MAX_PASSES = 24
"""Passes of a search at most. Each leaves a quarter of the range; scores that 24 of them cannot
tell apart differ by less than 2^-48 of the row's range, and count as equal."""


@dataclass(frozen=True, kw_only=True)
class SelectionMemory:
    """Bytes that a selection takes beside queries and keys, for all heads of a layer.

    The map of all pooled scores is never there; at a million tokens of 16 heads it is 8.6 GB.
    """

    means: int
    """Pooled queries and keys, float32, and the copies of them that the kernels read."""
    rows: int
    """Thresholds, counts and starts of the rows."""
    columns: int
    """The lists, which stay for the attention."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.means + self.rows + self.columns


def selection_memory(
    num_tokens: int,
    *,
    num_heads: int,
    head_size: int,
    density: float,
    block_q: int = 128,
    block_k: int = 64,
) -> SelectionMemory:
    """Return what a selection at a density takes.

    Example:
        >>> memory = selection_memory(2**20, num_heads=16, head_size=64, density=0.1)
        >>> round(memory.total / 2**30, 2)
        0.99
    """
    num_rows = num_heads * -(-num_tokens // block_q)
    num_columns = -(-num_tokens // block_k)
    return SelectionMemory(
        means=2 * 4 * head_size * (num_rows + num_heads * num_columns),
        # Two thresholds, ties and count of 4 bytes; the count again and the start of 8 bytes.
        rows=num_rows * (4 * 4 + 2 * 8),
        columns=4 * num_rows * max(round(density * num_columns), 1),
    )


def select_columns(
    q_means: Tensor,  # [B, H, R, D] float32
    k_means: Tensor,  # [B, H, C, D] float32
    k_counts: Tensor,  # [B, C]
    *,
    mass: Sequence[float] | None,
    least: Sequence[int],
    most: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Keep the fewest most likely key blocks of each query block that are enough.

    Waits for the device once, to learn how long the lists are.

    Args:
        q_means: ``[B, H, R, D]`` float32, D at most `MAX_HEAD_SIZE`; finite.
        k_means: ``[B, H, C, D]`` float32; finite.
        k_counts: Keys of each block, ``[B, C]``; blocks without keys are never kept.
        mass: For each head the share of the pooled softmax to reach; none if only `most` counts.
        least: For each head the number of blocks to keep at least, of those with keys.
        most: For each head the number of blocks to keep at most.

    Returns:
        Blocks of each row, ``[B * H * R]`` int64, and their ids, ascending, row after row, int32.
        Of blocks with equal scores the first are kept.
    """
    batch, heads, num_rows, head_size = q_means.shape
    num_columns = k_means.shape[2]
    device = q_means.device
    num_lists = batch * heads * num_rows
    counts = torch.zeros(num_lists, dtype=torch.int32, device=device)
    if num_lists == 0 or num_columns == 0:
        return counts.long(), counts.new_empty(0)
    ties = torch.empty_like(counts)
    low, high = (torch.empty(num_lists, dtype=torch.float32, device=device) for _ in range(2))
    pooled = (
        (q_means * head_size**-0.5).contiguous(),
        k_means.contiguous(),
        k_counts.to(torch.float32).log().contiguous(),
        (k_counts > 0).sum(-1, dtype=torch.int32),
    )
    sizes = (heads, num_rows, num_columns)
    constants = _constants(head_size, num_lists)
    grid = (batch * heads * -(-num_rows // constants["TILE_ROWS"]),)
    # Triton launches on the current device, which may be another one.
    with torch.cuda.device_of(q_means):
        _threshold_kernel[grid](
            *pooled,
            torch.tensor(mass if mass is not None else [0.0] * heads, device=device).float(),
            torch.tensor(least, dtype=torch.int32, device=device),
            torch.tensor(most, dtype=torch.int32, device=device),
            low,
            high,
            ties,
            counts,
            *sizes,
            **constants,
            **{"HAS_MASS": mass is not None, "MAX_PASSES": _MAX_PASSES},
        )
        row_counts = counts.long()
        row_ends = row_counts.cumsum(0)
        columns = torch.empty(int(row_ends[-1]), dtype=torch.int32, device=device)
        found = (low, high, ties, row_counts, row_ends)
        _emit_kernel[grid](*pooled, *found, columns, *sizes, **constants)
    return row_counts, columns


def why_not(means: Tensor) -> str | None:
    """Say in one sentence why these kernels cannot select from such means; none if they can."""
    is_interpreted = not isinstance(_threshold_kernel, triton.JITFunction)
    lacks = why_not_on(means.device, is_interpreted=is_interpreted)
    if lacks is not None:
        return lacks
    if means.dtype != torch.float32:
        return f"The kernels take float32 means, these are {means.dtype}."
    if means.shape[3] > MAX_HEAD_SIZE:
        return f"The head size must be at most {MAX_HEAD_SIZE}, this is {means.shape[3]}."
    return None


def _constants(head_size: int, num_lists: int) -> dict[str, Any]:
    """Return what both kernels are compiled for: the same, so that they see the same scores."""
    config = selection_config(head_size, num_lists)
    return {
        "HEAD_SIZE": head_size,
        "HEAD_TILE": max(1 << (head_size - 1).bit_length(), 16),
        "TILE_ROWS": config.tile_rows,
        "TILE_COLUMNS": config.tile_columns,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


@triton.jit
def _load_rows(
    q_ptr,
    first_row,
    num_rows,
    HEAD_SIZE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """Load pooled queries: ``[TILE_ROWS, HEAD_TILE]``, zeros beyond the end."""
    offs_m = tl.arange(0, TILE_ROWS)
    offs_d = tl.arange(0, HEAD_TILE)
    mask = (offs_m < num_rows)[:, None] & (offs_d < HEAD_SIZE)[None, :]
    return tl.load(
        q_ptr + first_row * HEAD_SIZE + offs_m[:, None] * HEAD_SIZE + offs_d[None, :],
        mask=mask,
        other=0.0,
    )


@triton.jit
def _score_tile(
    q,
    k_ptr,
    log_counts_ptr,
    columns,
    num_columns,
    HEAD_SIZE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
):
    """Return pooled scores ``[TILE_ROWS, TILE_COLUMNS]``, minus infinity for no keys."""
    offs_d = tl.arange(0, HEAD_TILE)
    mask_n = columns < num_columns
    k = tl.load(
        k_ptr + columns[:, None] * HEAD_SIZE + offs_d[None, :],
        mask=mask_n[:, None] & (offs_d < HEAD_SIZE)[None, :],
        other=0.0,
    )
    log_counts = tl.load(log_counts_ptr + columns, mask=mask_n, other=float("-inf"))
    return tl.dot(q, tl.trans(k), input_precision="tf32x3") + log_counts[None, :]


@triton.jit(do_not_specialize=_SIZES)
def _threshold_kernel(
    q_ptr,
    k_ptr,
    log_counts_ptr,
    num_present_ptr,
    mass_ptr,
    least_ptr,
    most_ptr,
    low_ptr,
    high_ptr,
    ties_ptr,
    counts_ptr,
    num_heads,
    num_rows,
    num_columns,
    HAS_MASS: tl.constexpr,
    MAX_PASSES: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    num_tiles = tl.cdiv(num_rows, TILE_ROWS)
    batch_head = (tl.program_id(0) // num_tiles).to(tl.int64)
    first = tl.program_id(0) % num_tiles * TILE_ROWS
    batch = batch_head // num_heads
    head = batch_head % num_heads
    first_row = batch_head * num_rows + first
    offs_m = tl.arange(0, TILE_ROWS)
    mask_m = offs_m < num_rows - first
    q = _load_rows(q_ptr, first_row, num_rows - first, HEAD_SIZE, HEAD_TILE, TILE_ROWS)
    head_k_ptr = k_ptr + batch_head * num_columns * HEAD_SIZE
    head_counts_ptr = log_counts_ptr + batch * num_columns
    num_present = tl.load(num_present_ptr + batch)
    least = tl.minimum(tl.load(least_ptr + head), num_present)
    most = tl.minimum(tl.load(most_ptr + head), num_present)

    # All that exist are enough; none is not.
    peak = tl.full([TILE_ROWS], float("-inf"), dtype=tl.float32)
    lowest = tl.full([TILE_ROWS], float("inf"), dtype=tl.float32)
    for start in range(0, num_columns, TILE_COLUMNS):
        columns = start + tl.arange(0, TILE_COLUMNS)
        scores = _score_tile(
            q, head_k_ptr, head_counts_ptr, columns, num_columns, HEAD_SIZE, HEAD_TILE
        )
        peak = tl.maximum(peak, tl.max(scores, 1))
        lowest = tl.minimum(
            lowest, tl.min(tl.where(scores == float("-inf"), float("inf"), scores), 1)
        )
    # One or two float32 numbers above the peak.
    low = lowest
    high = peak + tl.maximum(tl.abs(peak) * 1.1920929e-07, 1e-37)
    low_count = tl.zeros([TILE_ROWS], dtype=tl.int32) + num_present
    high_count = tl.zeros([TILE_ROWS], dtype=tl.int32)
    low_mass = tl.zeros([TILE_ROWS], dtype=tl.float32)
    high_mass = tl.zeros([TILE_ROWS], dtype=tl.float32)
    wanted = tl.zeros([TILE_ROWS], dtype=tl.float32)
    if HAS_MASS:
        for start in range(0, num_columns, TILE_COLUMNS):
            columns = start + tl.arange(0, TILE_COLUMNS)
            scores = _score_tile(
                q, head_k_ptr, head_counts_ptr, columns, num_columns, HEAD_SIZE, HEAD_TILE
            )
            low_mass += tl.sum(tl.exp(scores - peak[:, None]), 1)
        wanted = tl.load(mass_ptr + head) * low_mass

    num_open = tl.sum((mask_m & (low_count > 1)).to(tl.int32), 0)
    step = 0
    while (num_open > 0) & (step < MAX_PASSES):
        step += 1
        middle = 0.5 * low + 0.5 * high
        below = 0.5 * low + 0.5 * middle
        above = 0.5 * middle + 0.5 * high
        below_count = tl.zeros([TILE_ROWS], dtype=tl.int32)
        middle_count = tl.zeros([TILE_ROWS], dtype=tl.int32)
        above_count = tl.zeros([TILE_ROWS], dtype=tl.int32)
        below_mass = tl.zeros([TILE_ROWS], dtype=tl.float32)
        middle_mass = tl.zeros([TILE_ROWS], dtype=tl.float32)
        above_mass = tl.zeros([TILE_ROWS], dtype=tl.float32)
        for start in range(0, num_columns, TILE_COLUMNS):
            columns = start + tl.arange(0, TILE_COLUMNS)
            scores = _score_tile(
                q, head_k_ptr, head_counts_ptr, columns, num_columns, HEAD_SIZE, HEAD_TILE
            )
            reaches_below = scores >= below[:, None]
            reaches_middle = scores >= middle[:, None]
            reaches_above = scores >= above[:, None]
            below_count += tl.sum(reaches_below.to(tl.int32), 1)
            middle_count += tl.sum(reaches_middle.to(tl.int32), 1)
            above_count += tl.sum(reaches_above.to(tl.int32), 1)
            if HAS_MASS:
                weights = tl.exp(scores - peak[:, None])
                below_mass += tl.sum(tl.where(reaches_below, weights, 0.0), 1)
                middle_mass += tl.sum(tl.where(reaches_middle, weights, 0.0), 1)
                above_mass += tl.sum(tl.where(reaches_above, weights, 0.0), 1)
        # Fewer reach a higher threshold, so the answers are yes up to some threshold, then no.
        is_below = _is_enough(below_count, below_mass, least, most, wanted, HAS_MASS)
        is_middle = _is_enough(middle_count, middle_mass, least, most, wanted, HAS_MASS)
        is_above = _is_enough(above_count, above_mass, least, most, wanted, HAS_MASS)
        high = _pick(is_below, is_middle, is_above, below, middle, above, high)
        high_count = _pick(
            is_below, is_middle, is_above, below_count, middle_count, above_count, high_count
        )
        high_mass = _pick(
            is_below, is_middle, is_above, below_mass, middle_mass, above_mass, high_mass
        )
        low = _pick(~is_above, ~is_middle, ~is_below, above, middle, below, low)
        low_count = _pick(
            ~is_above, ~is_middle, ~is_below, above_count, middle_count, below_count, low_count
        )
        low_mass = _pick(
            ~is_above, ~is_middle, ~is_below, above_mass, middle_mass, below_mass, low_mass
        )
        # Where no number is left between the bounds, all scores between them are equal.
        middle = 0.5 * low + 0.5 * high
        is_open = mask_m & (low_count - high_count > 1) & (low < middle) & (middle < high)
        num_open = tl.sum(is_open.to(tl.int32), 0)

    # Of the equal ones between the bounds as many as are needed.
    num_tied = low_count - high_count
    ties = least - high_count
    if HAS_MASS:
        weight = (low_mass - high_mass) / tl.maximum(num_tied, 1).to(tl.float32)
        missing = (wanted - high_mass) / tl.maximum(weight, 1e-37)
        ties = tl.maximum(ties, tl.ceil(tl.minimum(missing, num_columns)).to(tl.int32))
    ties = tl.minimum(ties, most - high_count)
    ties = tl.minimum(tl.maximum(ties, 1), num_tied)
    tl.store(low_ptr + first_row + offs_m, low, mask=mask_m)
    tl.store(high_ptr + first_row + offs_m, high, mask=mask_m)
    tl.store(ties_ptr + first_row + offs_m, ties, mask=mask_m)
    tl.store(counts_ptr + first_row + offs_m, high_count + ties, mask=mask_m)


@triton.jit
def _is_enough(count, mass, least, most, wanted, HAS_MASS: tl.constexpr):
    """Return whether so many blocks of such mass are enough."""
    is_enough = count >= least
    if HAS_MASS:
        is_enough = is_enough & (mass >= wanted)
    return is_enough | (count >= most)


@triton.jit
def _pick(is_first_passed, is_second_passed, is_third_passed, first, second, third, last):
    """Return the first of three values that is not passed over; the last if all are."""
    value = tl.where(is_third_passed, last, third)
    value = tl.where(is_second_passed, value, second)
    return tl.where(is_first_passed, value, first)


@triton.jit(do_not_specialize=_SIZES)
def _emit_kernel(
    q_ptr,
    k_ptr,
    log_counts_ptr,
    num_present_ptr,
    low_ptr,
    high_ptr,
    ties_ptr,
    counts_ptr,
    row_ends_ptr,
    columns_ptr,
    num_heads,
    num_rows,
    num_columns,
    HEAD_SIZE: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    num_tiles = tl.cdiv(num_rows, TILE_ROWS)
    batch_head = (tl.program_id(0) // num_tiles).to(tl.int64)
    first = tl.program_id(0) % num_tiles * TILE_ROWS
    batch = batch_head // num_heads
    first_row = batch_head * num_rows + first
    offs_m = tl.arange(0, TILE_ROWS)
    mask_m = offs_m < num_rows - first
    q = _load_rows(q_ptr, first_row, num_rows - first, HEAD_SIZE, HEAD_TILE, TILE_ROWS)
    head_k_ptr = k_ptr + batch_head * num_columns * HEAD_SIZE
    head_counts_ptr = log_counts_ptr + batch * num_columns
    low = tl.load(low_ptr + first_row + offs_m, mask=mask_m, other=0.0)
    high = tl.load(high_ptr + first_row + offs_m, mask=mask_m, other=0.0)
    ties = tl.load(ties_ptr + first_row + offs_m, mask=mask_m, other=0)
    count = tl.load(counts_ptr + first_row + offs_m, mask=mask_m, other=0).to(tl.int32)
    row_start = tl.load(row_ends_ptr + first_row + offs_m, mask=mask_m, other=0) - count
    num_left = tl.load(num_present_ptr + batch)
    num_tied = tl.zeros([TILE_ROWS], dtype=tl.int32)
    num_taken = tl.zeros([TILE_ROWS], dtype=tl.int32)
    for start in range(0, num_columns, TILE_COLUMNS):
        columns = start + tl.arange(0, TILE_COLUMNS)
        scores = _score_tile(
            q, head_k_ptr, head_counts_ptr, columns, num_columns, HEAD_SIZE, HEAD_TILE
        )
        exists = scores > float("-inf")
        is_tied = exists & (scores >= low[:, None]) & (scores < high[:, None])
        tie_rank = num_tied[:, None] + tl.cumsum(is_tied.to(tl.int32), 1)
        take = exists & ((scores >= high[:, None]) | (is_tied & (tie_rank <= ties[:, None])))
        num_tied += tl.sum(is_tied.to(tl.int32), 1)
        # The lists are as long as the first kernel said, whatever rounding does to the scores: when
        # as many are missing as there are left, all are taken.
        here = exists.to(tl.int32)
        num_left -= tl.max(tl.sum(here, 1), 0)
        missing = count - num_taken - num_left - tl.sum(take.to(tl.int32), 1)
        others = (exists & ~take).to(tl.int32)
        take = take | ((others != 0) & (tl.cumsum(others, 1) <= missing[:, None]))
        place = num_taken[:, None] + tl.cumsum(take.to(tl.int32), 1) - 1
        tl.store(
            columns_ptr + row_start[:, None] + place,
            columns[None, :] + tl.zeros([TILE_ROWS, 1], dtype=tl.int32),
            mask=take & (place < count[:, None]),
        )
        num_taken += tl.sum(take.to(tl.int32), 1)
