# SPDX-License-Identifier: Apache-2.0
"""Launch order and parts of full rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ns_sparseattn.kernels.schedule import (
    LONGEST_FIRST_BELOW,
    MAX_PARTS,
    MIN_PART_BLOCKS,
    Schedule,
    plan_schedule,
)

OFFSETS = torch.tensor([0, 2, 5, 5, 9, 12])


def _plan(**changes: Any) -> Schedule:
    arguments: dict[str, Any] = {
        "num_entries": 12,
        "num_full_rows": 0,
        "num_k_blocks": 8,
        "num_sink_k_blocks": 0,
        "num_tokens": 512,
        "num_slots": 4,
    }
    return plan_schedule(OFFSETS, **(arguments | changes))


def test_short_sequences_start_with_the_longest_rows() -> None:
    order = _plan().order
    assert order is not None
    assert order.dtype == torch.int32
    assert order.tolist() == [3, 1, 4, 0, 2], "rows of equal length stay in their order"


def test_long_sequences_keep_their_order() -> None:
    assert _plan(num_tokens=LONGEST_FIRST_BELOW).order is None


def test_without_full_rows_there_are_no_parts() -> None:
    assert _plan(num_k_blocks=10_000).num_parts == 1


@pytest.mark.parametrize("num_slots", [1, 16, 264])
@pytest.mark.parametrize(("num_frames", "density"), [(8, 0.1), (25, 0.25), (100, 0.1), (1000, 0.1)])
def test_no_full_row_is_longer_than_half_of_what_a_place_has_to_do(
    num_frames: int, density: float, num_slots: int
) -> None:
    # A layer of VGGT: 16 heads, 1036 patches and 5 special tokens of each photo.
    num_k = num_frames * 1036 // 64 + num_frames * 5 // 64 + 2
    num_rows = 16 * (num_frames * 1036 // 128 + 1)
    num_full = 16 * (num_frames * 5 // 128 + 1)
    entries = int(num_rows * num_k * density)
    parts = _plan(
        num_entries=entries,
        num_full_rows=num_full,
        num_k_blocks=num_k,
        num_slots=num_slots,
    ).num_parts
    share = (entries + num_full * num_k) / num_slots
    length = num_k / parts
    assert length <= share / 2 + 1 or parts == MAX_PARTS or length <= 2 * MIN_PART_BLOCKS
    assert parts == 1 or num_k / (parts - 1) > min(share / 2 - 1, MIN_PART_BLOCKS)


def test_long_sequences_need_no_parts() -> None:
    # 1000 photos on an H200 at density 0.1: a full row is 0.5 per cent of what a place does.
    num_k, num_rows, num_full = 16_268, 16 * 8134, 16 * 40
    parts = _plan(
        num_entries=num_rows * num_k // 10,
        num_full_rows=num_full,
        num_k_blocks=num_k,
        num_tokens=1_041_000,
        num_slots=264,
    ).num_parts
    assert parts == 1
