# SPDX-License-Identifier: Apache-2.0
"""Tiles across frames: every patch once, blocks compact, frames chained by what they show."""

from __future__ import annotations

import pytest
import torch

from ns_sparseattn.attention import AttentionPlan, AttentionRun, BlockSparsePolicy, TokenLayout
from ns_sparseattn.attention.layout import BLOCK_K
from ns_sparseattn.attention.tiles import FRAMES, chain_frames, tile_order, tile_side

TILE = tile_side(BLOCK_K)

GRIDS = [(1, 1, 1), (4, 8, 8), (3, 5, 7), (9, 28, 37), (6, 4, 2)]


def _tokens(num_frames: int, height: int, width: int) -> TokenLayout:
    return TokenLayout(
        num_frames=num_frames, num_special=2, grid_height=height, grid_width=width, num_trailing=1
    )


@pytest.mark.parametrize("sizes", GRIDS)
def test_every_patch_has_one_place(sizes: tuple[int, int, int]) -> None:
    tokens = _tokens(*sizes)
    order = tile_order(tokens, torch.arange(sizes[0]).flip(0))
    assert sorted(order.tolist()) == list(range(tokens.num_frames * tokens.num_patches))


def test_a_block_is_one_place_of_a_few_frames_that_follow_each_other() -> None:
    tokens = _tokens(8, 8, 12)
    frame_order = torch.tensor([3, 1, 0, 2, 7, 5, 4, 6])
    order = tile_order(tokens, frame_order)
    for block in order.reshape(-1, FRAMES * TILE * TILE):
        frames, patches = block // tokens.num_patches, block % tokens.num_patches
        assert sorted(frames.unique().tolist()) in ([0, 1, 2, 3], [4, 5, 6, 7])
        for place in (patches // 12, patches % 12):
            assert int(place.max() - place.min()) == TILE - 1


@pytest.mark.parametrize("is_special_last", [False, True])
def test_frames_are_chained_by_what_they_show(is_special_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = TokenLayout(
        num_frames=12, num_special=3, grid_height=9, grid_width=10, is_special_last=is_special_last
    )
    # A panorama from which each frame cuts a window, frames in a shuffled order.
    panorama = torch.randn(2, 9, 10 + 11, 16, generator=generator)
    panorama = torch.nn.functional.avg_pool2d(panorama.permute(0, 3, 1, 2), 5, 1, 2)
    shuffled = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(11) + 1])
    k = torch.randn(2, tokens.num_tokens, 16, generator=generator)
    for frame, step in enumerate(shuffled.tolist()):
        window = panorama[:, :, :, step : step + 10].permute(0, 2, 3, 1).flatten(1, 2)
        k[:, tokens.patch_ids()[frame]] = window
    assert shuffled[chain_frames(k, tokens)].tolist() == list(range(12))


@pytest.mark.parametrize("order", ["tiles", "hilbert", "raster"])
def test_an_order_changes_what_a_block_is_but_not_what_attention_is(order: str) -> None:
    tokens = _tokens(5, 9, 11)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 2, tokens.num_tokens, 32, generator=generator) for _ in range(3))
    plan = AttentionPlan.block_sparse(density=1.0, layout=order)  # pyright: ignore[reportArgumentType]
    out = AttentionRun(plan, tokens, 1).attend(0, q, k, v)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, want, rtol=0, atol=2e-6)


def test_scenes_of_a_batch_are_chained_on_their_own() -> None:
    tokens = _tokens(6, 8, 8)
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 2, tokens.num_tokens, 32, generator=generator) for _ in range(3))
    plan = AttentionPlan.block_sparse(density=0.3)
    both = AttentionRun(plan, tokens, 1).attend(0, q, k, v)
    alone = AttentionRun(plan, tokens, 1).attend(0, q[1:], k[1:], v[1:])
    assert torch.equal(both[1:], alone)


def test_the_first_sparse_layer_decides_for_all_layers() -> None:
    tokens = _tokens(6, 8, 8)
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 2, tokens.num_tokens, 32, generator=generator) for _ in range(3))
    run = AttentionRun(AttentionPlan.block_sparse(density=0.3), tokens, 2)
    run.attend(0, q, k, v)
    # Nothing of these keys is finite, so they cannot have been asked.
    with pytest.raises(ValueError, match="finite"):
        run.attend(1, q, torch.full_like(k, float("nan")), v)
    assert len(run._orders) == 1


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="`order` must be one of"):
        BlockSparsePolicy(order="spiral")  # pyright: ignore[reportArgumentType]
