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


@pytest.mark.parametrize("num_missing", [0, 30, 64, 100, 7 * 64 - 1, 7 * 64])
def test_pairs_are_counted_by_the_lengths_of_lists_where_the_last_block_alone_is_ragged(
    num_missing: int,
) -> None:
    # Padding before the two sinks, as the layout has it; lists name blocks with keys alone.
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 3, 4, 9, generator=generator) < 0.5
    key_mask = torch.ones(2, 9 * 64, dtype=torch.bool)
    key_mask[1, 7 * 64 - num_missing : 7 * 64] = False
    mask[1] &= key_mask[1].reshape(9, 64).any(-1)
    block_map = BlockMap.from_mask(mask, num_full_q_blocks=1, num_sink_k_blocks=2)
    sizes = [torch.full((2, 4), 128.0, dtype=torch.float64), key_mask.reshape(2, 9, 64).sum(-1)]
    sizes[0][:, 1] = 17.0
    quick = block_map._listed_pairs_of_whole_blocks(sizes[0], sizes[1].double())
    slow = block_map._listed_pairs_entry_by_entry(sizes[0], sizes[1].double())
    assert quick is not None
    assert float(quick) == float(slow)


def test_pairs_are_counted_one_by_one_where_any_block_may_be_ragged() -> None:
    key_mask = torch.ones(1, 4 * 64, dtype=torch.bool)
    queries = torch.full((1, 2), 128.0, dtype=torch.float64)
    everything = BlockMap.from_mask(torch.ones(1, 1, 2, 4, dtype=torch.bool))
    # A hole in the first block, then a last block that is listed and has no key.
    for hole in (slice(3, 4), slice(3 * 64, 4 * 64)):
        masked = key_mask.clone()
        masked[:, hole] = False
        keys = masked.reshape(1, 4, 64).sum(-1).double()
        assert everything._listed_pairs_of_whole_blocks(queries, keys) is None
        want = float(masked.sum() / 256)
        assert everything.density(256, 256, masked) == 1.0
        assert float(everything._listed_pairs(queries, keys)) == want * 256 * 256


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
