# SPDX-License-Identifier: Apache-2.0
"""Token layouts: where patches and special tokens are, and the order of blocks made of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ns_sparseattn.attention import AttentionPlan, AttentionRun, TokenLayout
from ns_sparseattn.attention.layout import BLOCK_K, BLOCK_Q, BlockOrder

LAYOUTS = [
    pytest.param(
        TokenLayout(
            num_frames=3,
            num_special=2,
            grid_height=9,
            grid_width=11,
            is_special_last=is_special_last,
            num_trailing=num_trailing,
        ),
        id=f"{'patches-first' if is_special_last else 'specials-first'}-{num_trailing}-trailing",
    )
    for is_special_last in (False, True)
    for num_trailing in (0, 1, 70)
]


def test_patches_and_special_tokens_by_hand() -> None:
    tokens = TokenLayout(
        num_frames=2,
        num_special=1,
        grid_height=1,
        grid_width=3,
        is_special_last=True,
        num_trailing=2,
    )
    assert tokens.num_tokens == 10
    assert tokens.patch_ids().tolist() == [[0, 1, 2], [4, 5, 6]]
    assert tokens.special_ids().tolist() == [3, 7, 8, 9]


def test_special_tokens_come_first_unless_told_otherwise() -> None:
    tokens = TokenLayout(num_frames=2, num_special=2, grid_height=1, grid_width=1)
    assert tokens.patch_ids().tolist() == [[2], [5]]
    assert tokens.special_ids().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("tokens", LAYOUTS)
def test_every_token_is_a_patch_or_special(tokens: TokenLayout) -> None:
    ids = torch.cat([tokens.patch_ids().flatten(), tokens.special_ids()])
    assert sorted(ids.tolist()) == list(range(tokens.num_tokens))


@pytest.mark.parametrize("tokens", LAYOUTS)
def test_blocks_of_special_tokens_hold_nothing_else(tokens: TokenLayout) -> None:
    order = BlockOrder.of(tokens, torch.device("cpu"))
    places = order.scatter_index[0, tokens.special_ids()]
    num_places = order.gather_index.shape[1]
    for block, num_blocks in (
        (BLOCK_Q, order.num_full_q_blocks),
        (BLOCK_K, order.num_sink_k_blocks),
    ):
        start = (-(-num_places // block) - num_blocks) * block
        assert sorted(places.tolist()) == list(range(start, num_places))


@pytest.mark.parametrize("tokens", LAYOUTS)
def test_special_tokens_are_seen_at_the_lowest_density(tokens: TokenLayout) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, _ = (torch.randn(1, 2, tokens.num_tokens, 32, generator=generator) for _ in range(3))
    special = tokens.special_ids()
    v = torch.zeros_like(q)
    v[:, :, special] = 1.0
    out = AttentionRun(AttentionPlan.block_sparse(density=0.01), tokens, 1).attend(0, q, k, v)
    dense = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out[:, :, special], dense[:, :, special], rtol=0, atol=1e-6)
    assert bool((out > 0).all())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_frames": 0}, "at least one frame"),
        ({"grid_height": 0}, "at least one frame"),
        ({"num_special": -1}, "fewer than no special token"),
        ({"num_trailing": -1}, "fewer than no special token"),
    ],
)
def test_impossible_layouts_are_refused(sizes: dict[str, int], message: str) -> None:
    good = TokenLayout(num_frames=1, num_special=0, grid_height=1, grid_width=1)
    with pytest.raises(ValueError, match=message):
        replace(good, **sizes)
