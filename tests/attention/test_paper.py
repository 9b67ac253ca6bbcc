# SPDX-License-Identifier: Apache-2.0
"""The published layout and selection: what it keeps, what it drops, where it misses its mass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ns_sparseattn.attention import (
    AttentionPlan,
    AttentionRun,
    PaperPolicy,
    TokenLayout,
    paper,
    record_block_maps,
    select_blocks,
)
from ns_sparseattn.attention.api import resolve_backend
from ns_sparseattn.attention.hilbert import hilbert_order
from ns_sparseattn.attention.paper import PaperOrder, select_paper_blocks

_CPU = torch.device("cpu")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _photos(num_frames: int) -> TokenLayout:
    """The tokens of photos of 518 x 392 pixels."""
    return TokenLayout(num_frames=num_frames, num_special=5, grid_height=28, grid_width=37)


def _with_shares(shares: list[float]) -> tuple[Tensor, Tensor]:
    """Queries and keys of 64 tokens for each share whose pooled softmax is as given."""
    q = torch.zeros(1, 1, 64 * len(shares), 4)
    q[..., 0] = math.sqrt(4)
    k = torch.zeros_like(q)
    k[0, 0, :, 0] = torch.tensor(shares).log().repeat_interleave(64)
    return q, k


@pytest.mark.parametrize("hilbert", [False, True])
@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(
            TokenLayout(num_frames=3, num_special=5, grid_height=10, grid_width=13), id="ragged"
        ),
        pytest.param(
            TokenLayout(num_frames=2, num_special=5, grid_height=8, grid_width=8), id="aligned"
        ),
        pytest.param(
            TokenLayout(num_frames=4, num_special=0, grid_height=5, grid_width=5), id="no_special"
        ),
        pytest.param(
            TokenLayout(num_frames=1, num_special=1, grid_height=1, grid_width=1), id="tiny"
        ),
        pytest.param(
            TokenLayout(
                num_frames=2,
                num_special=5,
                grid_height=9,
                grid_width=9,
                is_special_last=True,
                num_trailing=1,
            ),
            id="special_last",
        ),
        pytest.param(
            TokenLayout(num_frames=60, num_special=5, grid_height=3, grid_width=3), id="sinks"
        ),
    ],
)
def test_ratio_zero_is_dense_attention(tokens: TokenLayout, hilbert: bool) -> None:
    q, k, v = (_random(1, 2, tokens.num_tokens, 32, seed=seed) for seed in range(3))
    run = AttentionRun(AttentionPlan.paper(sparse_ratio=0.0, hilbert=hilbert), tokens, 1)
    out = run.attend(0, q, k, v)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=2e-6)
    assert run.stats[0].density == 1.0


@pytest.mark.parametrize(
    ("num_frames", "num_mixed", "num_sinks"), [(2, 10, 0), (10, 8, 1), (16, 0, 2), (50, 40, 4)]
)
def test_first_special_tokens_share_the_last_patch_block(
    num_frames: int, num_mixed: int, num_sinks: int
) -> None:
    tokens = _photos(num_frames)
    order = PaperOrder.of(tokens, _CPU)
    num_special = tokens.num_tokens - order.num_patches
    q = torch.zeros(1, 1, order.num_patches, 4)
    block_map = select_paper_blocks(q, q, PaperPolicy(sparse_ratio=0.99), num_special=num_special)
    assert block_map.num_sink_k_blocks == num_sinks
    in_patch_blocks = order.gather_index[order.num_patches : block_map.num_listed_k_blocks * 64]
    assert in_patch_blocks.tolist() == tokens.special_ids()[:num_mixed].tolist()


@pytest.mark.parametrize("num_frames", [2, 10])
def test_dropping_that_block_drops_them_and_no_others(num_frames: int) -> None:
    num_mixed = {2: 10, 10: 8}[num_frames]
    tokens = _photos(num_frames)
    order = PaperOrder.of(tokens, _CPU)
    specials = order.gather_index[order.num_patches :]
    q = torch.zeros(1, 1, tokens.num_tokens, 64)
    q[..., 0] = 1.0
    k = _random(1, 1, tokens.num_tokens, 64)
    # No patch query wants the patches of the last block.
    k[:, :, order.gather_index[order.num_patches // 64 * 64 : order.num_patches], 0] = -100.0
    # The output of a query tells which special tokens it saw.
    v = torch.zeros(1, 1, tokens.num_tokens, 64)
    v[0, 0, specials, torch.arange(len(specials))] = 1.0

    paper_run = AttentionRun(AttentionPlan.paper(sparse_ratio=0.9), tokens, 1)
    seen = paper_run.attend(0, q, k, v)[0, 0] > 0
    patches = seen[order.gather_index[: order.num_patches], : len(specials)]
    assert not bool(patches[:, :num_mixed].any())
    assert bool(patches[:, num_mixed:].all())
    assert bool(seen[specials, : len(specials)].all()), "special queries are dense"

    ours = AttentionRun(AttentionPlan.block_sparse(density=0.1), tokens, 1).attend(0, q, k, v)
    assert bool((ours[0, 0, :, : len(specials)] > 0).all()), "the default layout drops none"


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (PaperPolicy(cdf_threshold=0.0), [0]),
        (PaperPolicy(cdf_threshold=0.6), [0]),
        (PaperPolicy(cdf_threshold=0.8), [0, 1]),
        (PaperPolicy(cdf_threshold=0.95), [0, 1]),
        (PaperPolicy(sparse_ratio=0.5), [0]),
        (PaperPolicy(sparse_ratio=0.3), [0, 1]),
        (PaperPolicy(sparse_ratio=1.0), [0]),
        (PaperPolicy(sparse_ratio=0.3, cdf_threshold=0.1), [0, 1]),
        (PaperPolicy(sparse_ratio=1.0, cdf_threshold=0.85), [0, 1]),
    ],
    ids=lambda value: value.name if isinstance(value, PaperPolicy) else "",
)
def test_kept_blocks_by_hand(policy: PaperPolicy, kept: list[int]) -> None:
    q, k = _with_shares([0.5, 0.3, 0.2])
    block_map = select_paper_blocks(q, k, policy, num_special=0)
    assert block_map.columns.tolist() == kept + kept


def test_the_mass_is_missed_by_a_block_where_the_default_reaches_it() -> None:
    q, k = _with_shares([0.5, 0.3, 0.2])
    published = select_paper_blocks(q, k, PaperPolicy(cdf_threshold=0.6), num_special=0)
    assert published.counts.unique().tolist() == [1]
    assert select_blocks(q, k, mass=0.6).counts.unique().tolist() == [2]


@pytest.mark.parametrize(("num_blocks", "num_kept"), [(10, 1), (100, 9)])
def test_counts_are_truncated(num_blocks: int, num_kept: int) -> None:
    q = _random(1, 1, 64 * num_blocks, 8)
    counts = select_paper_blocks(q, q, PaperPolicy(sparse_ratio=0.9), num_special=0).counts
    assert counts.unique().tolist() == [num_kept]


def test_a_ragged_tail_is_the_mean_of_its_own_tokens() -> None:
    q = torch.ones(1, 1, 130, 4)
    k = torch.zeros(1, 1, 130, 4)
    k[:, :, 128:] = 1.0
    block_map = select_paper_blocks(q, k, PaperPolicy(sparse_ratio=1.0), num_special=0)
    assert block_map.columns.tolist() == [2, 2]


def test_chunks_and_autocast_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = _random(1, 2, 1300, 32), _random(1, 2, 1300, 32, seed=1)
    policy = PaperPolicy(sparse_ratio=0.75, cdf_threshold=0.4)
    want = select_paper_blocks(q, k, policy, num_special=70).to_mask()
    monkeypatch.setattr(paper, "_SCORES_PER_CHUNK", 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = select_paper_blocks(q, k, policy, num_special=70).to_mask()
    assert torch.equal(got, want)


def test_nan_is_named() -> None:
    q = torch.full((1, 1, 64, 8), float("nan"))
    with pytest.raises(ValueError, match="must be finite"):
        select_paper_blocks(q, q, PaperPolicy(sparse_ratio=0.5), num_special=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs `sparse_ratio`, `cdf_threshold`, or both"),
        ({"sparse_ratio": 1.5}, "`sparse_ratio` must be in"),
        ({"cdf_threshold": -0.1}, "`cdf_threshold` must be in"),
        ({"cdf_threshold": float("nan")}, "`cdf_threshold` must be in"),
        ({"sparse_ratio": 0.5, "pooling": "sum"}, "`pooling` must be"),
    ],
)
def test_impossible_policies_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PaperPolicy(**options)


def test_statistics_name_the_policy() -> None:
    tokens = TokenLayout(num_frames=4, num_special=5, grid_height=16, grid_width=16)
    q = _random(1, 1, tokens.num_tokens, 32)
    run = AttentionRun(AttentionPlan.preset("vggt", "paper-s50"), tokens, 1)
    run.attend(0, q, q, q)
    (stats,) = run.stats
    assert stats.policy == "paper (ratio 0.5, cdf 0.7)"
    assert stats.backend == resolve_backend("auto", "cpu")
    assert 0.5 <= stats.density < 1.0
    assert 0 < stats.selection_ms < stats.time_ms


@pytest.mark.parametrize("size", [(4, 6), (5, 5), (28, 37), (37, 28), (1, 7), (7, 1), (10, 8)])
def test_hilbert_curve_visits_neighbours(size: tuple[int, int]) -> None:
    height, width = size
    order = torch.tensor(hilbert_order(height, width))
    assert sorted(order.tolist()) == list(range(height * width))
    steps = torch.stack([order // width, order % width]).diff(dim=1).abs()
    assert int(steps.amax()) <= 1
    assert int((steps.sum(0) > 1).sum()) <= 1, "at most one diagonal step"


def test_an_empty_grid_has_no_curve() -> None:
    with pytest.raises(ValueError, match="at least one cell, got 0 x 3"):
        hilbert_order(0, 3)


def test_maps_are_recorded_inside_only() -> None:
    tokens = TokenLayout(num_frames=2, num_special=5, grid_height=8, grid_width=8)
    q = _random(1, 1, tokens.num_tokens, 32)
    plan = AttentionPlan.paper(sparse_ratio=0.5)
    with record_block_maps() as outer:
        with record_block_maps() as inner:
            AttentionRun(plan, tokens, 2).attend(1, q, q, q)
        AttentionRun(AttentionPlan.dense(), tokens, 2).attend(0, q, q, q)
    AttentionRun(plan, tokens, 2).attend(0, q, q, q)
    assert outer == {}
    assert list(inner) == [1]
