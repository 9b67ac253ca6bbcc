# SPDX-License-Identifier: Apache-2.0
"""Block maps: expansion, counting, and refusal of what is no map."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ns_sparseattn.attention import BlockMap


def test_mask_survives_the_round_trip() -> None:
    mask = torch.rand(2, 3, 5, 7) < 0.5
    assert torch.equal(BlockMap.from_mask(mask).to_mask(), mask)


def test_counts_are_per_batch_head_and_query_block() -> None:
    mask = torch.rand(2, 3, 5, 7) < 0.5
    assert torch.equal(BlockMap.from_mask(mask).counts, mask.sum(-1))


@pytest.mark.parametrize("has_key_mask", [False, True])
@pytest.mark.parametrize("has_query_mask", [False, True])
def test_density_counts_token_pairs(
    has_key_mask: bool, has_query_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lists are counted in pieces; this many cut through rows.
    monkeypatch.setattr("ns_sparseattn.attention.block_map._ENTRIES_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 2, 5, 9, generator=generator) < 0.4
    block_map = BlockMap.from_mask(mask, num_full_q_blocks=1, num_sink_k_blocks=2)
    pairs = block_map.to_mask().repeat_interleave(128, 2).repeat_interleave(64, 3)[:, :, :517, :517]
    exists = torch.ones_like(pairs)
    masks = [torch.rand(2, 517, generator=generator) < 0.6 for _ in range(2)]
    if has_key_mask:
        exists &= masks[0][:, None, None]
    if has_query_mask:
        exists &= masks[1][:, None, :, None]
    want = int((pairs & exists).sum()) / int(exists.sum())
    density = block_map.density(
        517, 517, masks[0] if has_key_mask else None, masks[1] if has_query_mask else None
    )
    assert density == pytest.approx(want, abs=1e-9)


def test_lists_of_another_length_are_refused() -> None:
    block_map = BlockMap.from_mask(torch.ones(1, 1, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="`row_offsets` must end with the number of columns"):
        dataclasses.replace(block_map, columns=block_map.columns[:-1])


def test_columns_out_of_range_are_refused_where_they_would_be_used() -> None:
    block_map = BlockMap.from_mask(torch.ones(1, 1, 1, 2, dtype=torch.bool))
    wrong = dataclasses.replace(block_map, columns=block_map.columns + 1)
    tokens = torch.zeros(1, 1, 128, 8)
    with pytest.raises(ValueError, match=r"`block_map.columns` must be 0 to 1, got 1 to 2"):
        wrong.check_fits(tokens, tokens)


@pytest.mark.parametrize("mask", [torch.ones(1, 1, 2, 2), torch.ones(2, 2, dtype=torch.bool)])
def test_only_boolean_masks_of_four_axes_are_maps(mask: torch.Tensor) -> None:
    with pytest.raises((TypeError, ValueError), match="`mask` must"):
        BlockMap.from_mask(mask)
