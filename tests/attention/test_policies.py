# SPDX-License-Identifier: Apache-2.0
"""Frame-only, first-frame and auto layers; shares per head; the published layout by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import (
    AttentionPlan,
    AttentionRun,
    AutoPolicy,
    BlockSparsePolicy,
    FramePolicy,
    PaperPolicy,
    TokenLayout,
    dense_attention,
)
from ns_sparseattn.attention.block_map import BlockMap
from ns_sparseattn.attention.crossover import CROSSOVERS, Crossover, crossover
from ns_sparseattn.attention.recording import record_block_maps
from ns_sparseattn.attention.selection import select_blocks

LAYOUTS = [
    pytest.param(TokenLayout(num_frames=4, num_special=2, grid_height=3, grid_width=5), id="vggt"),
    pytest.param(
        TokenLayout(num_frames=3, num_special=1, grid_height=3, grid_width=5, num_trailing=2),
        id="trailing",
    ),
    pytest.param(TokenLayout(num_frames=1, num_special=0, grid_height=2, grid_width=2), id="one"),
]


def _qkv(tokens: TokenLayout, batch: int = 2, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(batch, heads, tokens.num_tokens, 32, generator=generator) for _ in range(3)
    )
    return q, k, v


@pytest.mark.parametrize("tokens", LAYOUTS)
@pytest.mark.parametrize("with_first_frame", [False, True])
def test_frame_layers_are_dense_attention_under_a_mask(
    tokens: TokenLayout, with_first_frame: bool
) -> None:
    q, k, v = _qkv(tokens)
    frame = torch.arange(tokens.num_tokens) // tokens.tokens_per_frame
    is_trailing = frame >= tokens.num_frames
    sees = (frame[:, None] == frame) | is_trailing[:, None] | is_trailing
    if with_first_frame:
        sees |= frame == 0
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees)
    plan = AttentionPlan(default=FramePolicy(with_first_frame=with_first_frame))
    run = AttentionRun(plan, tokens, 1)
    torch.testing.assert_close(run.attend(0, q, k, v), want, rtol=0, atol=2e-6)
    (stats,) = run.stats
    assert stats.density == pytest.approx(float(sees.float().mean()))
    assert stats.policy == ("first-frame" if with_first_frame else "frame-only")


def _auto(density: float) -> AttentionPlan:
    return AttentionPlan(default=AutoPolicy(policy=BlockSparsePolicy(max_density=density)))


def test_auto_is_sparse_above_the_crossover_and_dense_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = TokenLayout(num_frames=4, num_special=5, grid_height=16, grid_width=16)
    q, k, v = _qkv(tokens)
    limits = {"min_tokens": 1000, "max_density": 0.5, "source": "A test."}
    monkeypatch.setattr("ns_sparseattn.attention.run.crossover", lambda *_: Crossover(**limits))
    sparse, dense_by_density = (AttentionRun(_auto(d), tokens, 1) for d in (0.25, 0.75))
    assert not torch.equal(sparse.attend(0, q, k, v), dense_attention(q, k, v))
    assert torch.equal(dense_by_density.attend(0, q, k, v), dense_attention(q, k, v))
    limits["min_tokens"] = 2000
    few_tokens = AttentionRun(_auto(0.25), tokens, 1)
    assert torch.equal(few_tokens.attend(0, q, k, v), dense_attention(q, k, v))
    assert [run.stats[0].backend for run in (dense_by_density, few_tokens)] == ["sdpa", "sdpa"]
    # Special tokens add to the density asked for, which alone decides.
    limits |= {"min_tokens": 1000, "max_density": 0.25}
    at_the_limit = AttentionRun(_auto(0.25), tokens, 1)
    at_the_limit.attend(0, q, k, v)
    for run in (sparse, at_the_limit):
        assert 0.25 < run.stats[0].density < 0.5
    for run in (few_tokens, dense_by_density):
        assert run.stats[0].selection_ms == 0.0, "nothing was selected in vain"
    by_mass = AttentionPlan(default=AutoPolicy(policy=BlockSparsePolicy(mass=1.0)))
    after_selection = AttentionRun(by_mass, tokens, 1)
    assert torch.equal(after_selection.attend(0, q, k, v), dense_attention(q, k, v))
    assert after_selection.stats[0].selection_ms > 0.0


def test_auto_frame_layers_are_dense_below_the_crossover(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = TokenLayout(num_frames=4, num_special=5, grid_height=8, grid_width=8)
    q, k, v = _qkv(tokens)
    plan = AttentionPlan(default=AutoPolicy(policy=FramePolicy()))
    outputs = []
    for min_tokens in (tokens.num_tokens + 1, tokens.num_tokens):
        limits = Crossover(min_tokens=min_tokens, max_density=0.5, source="A test.")
        monkeypatch.setattr("ns_sparseattn.attention.run.crossover", lambda *_, x=limits: x)
        outputs.append(AttentionRun(plan, tokens, 1).attend(0, q, k, v))
    assert torch.equal(outputs[0], dense_attention(q, k, v))
    frames_only = AttentionRun(AttentionPlan(default=FramePolicy()), tokens, 1)
    assert torch.equal(outputs[1], frames_only.attend(0, q, k, v))


def test_every_crossover_says_where_it_is_from() -> None:
    for limits in (*CROSSOVERS.values(), crossover("gather", "a kind that nobody measured")):
        assert limits.source.endswith(".")
        assert limits.min_tokens > 0
        assert 0 < limits.max_density <= 1


def test_shares_may_differ_by_head() -> None:
    tokens = TokenLayout(num_frames=4, num_special=5, grid_height=16, grid_width=16)
    q, k, v = _qkv(tokens, batch=1)
    policy = BlockSparsePolicy(max_density=(0.25, 1.0), coarse=False)
    out = AttentionRun(AttentionPlan(default=policy), tokens, 1).attend(0, q, k, v)
    dense = dense_attention(q, k, v)
    torch.testing.assert_close(out[:, 1], dense[:, 1], rtol=0, atol=2e-6)
    assert float((out[:, 0] - dense[:, 0]).norm()) > 0.1
    assert policy.name == "block-sparse (density 0.25 to 1)"


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"mass": (0.5, 1.5)}, "`mass` must be in"),
        ({"mass": (0.5, 0.6), "max_density": (0.5, 0.6, 0.7)}, "one number of heads"),
        ({"mass": ()}, "one number of heads"),
        ({"min_density": (0.1, 0.6), "max_density": 0.5}, "Density bounds"),
    ],
)
def test_impossible_shares_are_refused(shares: dict[str, tuple[float, ...]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BlockSparsePolicy(**shares)  # pyright: ignore[reportArgumentType]


def test_the_published_layout_goes_by_its_name() -> None:
    plan = AttentionPlan.block_sparse(density=0.25, mass=0.9, layout="paper")
    assert plan.policy(0) == PaperPolicy(sparse_ratio=0.75, cdf_threshold=0.9)
    with pytest.raises(ValueError, match="`coarse` must be false"):
        AttentionPlan.block_sparse(density=0.25, layout="paper", coarse=True)


def test_a_plan_for_a_depth_is_stretched_to_a_model_of_another() -> None:
    early = dict.fromkeys(range(9), FramePolicy())
    plan = AttentionPlan(default=BlockSparsePolicy(max_density=0.25), layers=early, depth=24)
    assert plan.fitted_to(24).layers == early
    assert sorted(plan.fitted_to(4).layers) == [0, 1]
    assert sorted(plan.fitted_to(48).layers) == list(range(18))
    assert plan.fitted_to(1).layers == {0: FramePolicy()}


@pytest.mark.parametrize("block_k", [4, 16, 64])
@pytest.mark.parametrize("kind", ["ours", "paper"])
def test_blocks_of_any_size_with_all_kept_are_dense_attention(block_k: int, kind: str) -> None:
    tokens = TokenLayout(num_frames=5, num_special=2, grid_height=5, grid_width=7)
    q, k, v = _qkv(tokens)
    policy = (
        BlockSparsePolicy(max_density=1.0, block_k=block_k)
        if kind == "ours"
        else PaperPolicy(sparse_ratio=0.0, block_k=block_k)
    )
    run = AttentionRun(AttentionPlan(default=policy), tokens, 1)
    out = run.attend(0, q, k, v)
    torch.testing.assert_close(out, dense_attention(q, k, v), rtol=0, atol=5e-6)
    assert run.stats[0].density == pytest.approx(1.0)
    assert (f"blocks of {block_k}" in run.stats[0].policy) == (block_k != 64)


def test_small_blocks_choose_more_finely() -> None:
    tokens = TokenLayout(num_frames=8, num_special=2, grid_height=6, grid_width=8)
    q, k, v = _qkv(tokens)
    maps = {}
    for block_k in (16, 64):
        plan = AttentionPlan(default=BlockSparsePolicy(max_density=0.25, block_k=block_k))
        with record_block_maps() as recorded:
            AttentionRun(plan, tokens, 1).attend(0, q, k, v)
        maps[block_k] = recorded[0]
    assert (maps[16].block_q, maps[16].block_k) == (32, 16)
    # 384 patches: a quarter of 24 blocks is 6, of 6 blocks 2.
    assert maps[16].counts.unique().tolist() == [6]
    assert maps[64].counts.unique().tolist() == [2]


def test_a_selector_takes_the_place_of_the_selection() -> None:
    tokens = TokenLayout(num_frames=8, num_special=2, grid_height=6, grid_width=8)
    q, k, v = _qkv(tokens)
    calls = []

    def all_blocks(*tensors: Tensor, **options: object) -> BlockMap:
        calls.append(options)
        return select_blocks(*tensors, **{**options, "max_density": 1.0})  # type: ignore[arg-type]

    policy = BlockSparsePolicy(max_density=0.25, selector=all_blocks)
    out = AttentionRun(AttentionPlan(default=policy), tokens, 1).attend(0, q, k, v)
    torch.testing.assert_close(out, dense_attention(q, k, v), rtol=0, atol=5e-6)
    assert [call["max_density"] for call in calls] == [0.25]


@pytest.mark.parametrize("block_k", [0, 8, 32, 60])
def test_blocks_that_no_square_of_four_frames_fills_are_refused(block_k: int) -> None:
    with pytest.raises(ValueError, match="`block_k` must be 4 times a square"):
        BlockSparsePolicy(max_density=0.5, block_k=block_k)
