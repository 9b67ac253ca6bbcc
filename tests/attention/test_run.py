# SPDX-License-Identifier: Apache-2.0
"""The seam that a model sees: token order, plans, statistics."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ns_sparseattn.attention import (
    AttentionPlan,
    AttentionRun,
    BlockSparsePolicy,
    DensePolicy,
    PaperPolicy,
    TokenLayout,
)
from ns_sparseattn.attention.layout import BLOCK_K, BLOCK_Q, BlockOrder
from ns_sparseattn.configs.plans import PLANS

LAYOUTS = [
    pytest.param(
        TokenLayout(num_frames=3, num_special=5, grid_height=10, grid_width=13), id="padded"
    ),
    pytest.param(
        TokenLayout(num_frames=2, num_special=5, grid_height=8, grid_width=8), id="aligned"
    ),
    pytest.param(
        TokenLayout(num_frames=4, num_special=0, grid_height=5, grid_width=5), id="no-special"
    ),
    pytest.param(TokenLayout(num_frames=1, num_special=1, grid_height=1, grid_width=1), id="tiny"),
    pytest.param(
        TokenLayout(num_frames=60, num_special=5, grid_height=3, grid_width=3), id="many-special"
    ),
]


def _qkv(tokens: TokenLayout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, tokens.num_tokens, 32, generator=generator) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("tokens", LAYOUTS)
def test_keeping_everything_is_dense_attention(tokens: TokenLayout) -> None:
    q, k, v = _qkv(tokens)
    out = AttentionRun(AttentionPlan.block_sparse(mass=1.0), tokens, 1).attend(0, q, k, v)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=2e-6)


@pytest.mark.parametrize("tokens", LAYOUTS)
def test_block_order_keeps_special_tokens_in_blocks_of_their_own(tokens: TokenLayout) -> None:
    order = BlockOrder.of(tokens, torch.device("cpu"))
    num_places = order.gather_index.shape[1]
    held = order.gather_index[order.key_mask]
    assert sorted(held.tolist()) == list(range(tokens.num_tokens)), "each token has one place"
    assert torch.equal(
        order.gather_index[0, order.scatter_index[0]], torch.arange(tokens.num_tokens)
    )
    is_special = order.gather_index[0] % tokens.tokens_per_frame < tokens.num_special
    is_special &= order.key_mask[0]
    for block, num_blocks in (
        (BLOCK_Q, order.num_full_q_blocks),
        (BLOCK_K, order.num_sink_k_blocks),
    ):
        first = -(-num_places // block) - num_blocks
        assert not bool(is_special[: first * block].any())
        assert bool(is_special[first * block :].all())


def test_special_tokens_see_and_are_seen_by_everyone_at_any_density() -> None:
    tokens = TokenLayout(num_frames=3, num_special=5, grid_height=20, grid_width=20)
    q, k, v = _qkv(tokens)
    is_special = torch.arange(tokens.num_tokens) % tokens.tokens_per_frame < 5
    # Outputs are then the share of attention that special tokens get: zero if they were dropped.
    v = is_special[None, None, :, None].float().expand_as(v)
    run = AttentionRun(AttentionPlan.block_sparse(density=0.01), tokens, 1)
    out = run.attend(0, q, k, v)
    dense = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out[:, :, is_special], dense[:, :, is_special], rtol=0, atol=1e-6)
    assert bool((out > 0).all())


def test_error_falls_as_density_rises() -> None:
    tokens = TokenLayout(num_frames=4, num_special=5, grid_height=16, grid_width=16)
    q, k, v = _qkv(tokens)
    dense = F.scaled_dot_product_attention(q, k, v)
    errors = []
    for density in (0.1, 0.3, 0.6, 1.0):
        out = AttentionRun(AttentionPlan.block_sparse(density=density), tokens, 1).attend(
            0, q, k, v
        )
        errors.append(float((out - dense).norm() / dense.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5


def test_statistics_name_layer_policy_backend_and_density() -> None:
    tokens = TokenLayout(num_frames=4, num_special=5, grid_height=16, grid_width=16)
    plan = AttentionPlan(
        default=DensePolicy(),
        layers={1: BlockSparsePolicy(max_density=0.25, coarse=False, backend="gather")},
    )
    run = AttentionRun(plan, tokens, 2)
    for layer in (0, 1):
        run.attend(layer, *_qkv(tokens))
    dense, sparse = run.stats
    assert (dense.layer, dense.policy, dense.backend, dense.density) == (0, "dense", "sdpa", 1.0)
    assert (sparse.layer, sparse.backend) == (1, "gather")
    assert sparse.policy == "block-sparse (density 0.25)"
    assert 0.25 <= sparse.density < 0.32
    assert 0 < sparse.selection_ms < sparse.time_ms


def test_a_plan_for_more_layers_than_the_model_has_is_refused() -> None:
    tokens = TokenLayout(num_frames=1, num_special=0, grid_height=1, grid_width=1)
    plan = AttentionPlan(layers={7: DensePolicy()})
    with pytest.raises(ValueError, match=r"names layers \[7\]; this model has layers 0 to 3"):
        AttentionRun(plan, tokens, 4)


def test_another_number_of_tokens_is_refused() -> None:
    tokens = TokenLayout(num_frames=2, num_special=5, grid_height=4, grid_width=4)
    q = torch.zeros(1, 1, 41, 8)
    with pytest.raises(ValueError, match="must have the 42 tokens of the layout, got 41"):
        AttentionRun(AttentionPlan.dense(), tokens, 1).attend(0, q, q, q)


def test_presets_are_found_and_unknown_ones_named() -> None:
    assert AttentionPlan.preset("vggt", "exact").policy(5) == DensePolicy()
    assert AttentionPlan.preset("vggt", "paper-s50").policy(5) == PaperPolicy(
        sparse_ratio=0.5, cdf_threshold=0.7
    )
    assert AttentionPlan.preset("vggt", "paper-s75").policy(5) == PaperPolicy(
        sparse_ratio=0.8, cdf_threshold=0.5
    )
    with pytest.raises(ValueError, match="`name` must be one of"):
        AttentionPlan.preset("vggt", "fastest")
    with pytest.raises(ValueError, match="`model` must be one of"):
        AttentionPlan.preset("colmap", "exact")


@pytest.mark.parametrize(
    ("model", "num_layers"),
    [("vggt", 24), ("pi3", 18), ("pi3x", 18), ("mapanything", 8), ("tiny", 6)],
)
def test_every_preset_fits_and_says_where_it_is_from(model: str, num_layers: int) -> None:
    assert {"exact", "auto", "balanced", "fast"} < set(PLANS[model])
    for name, preset in PLANS[model].items():
        plan = AttentionPlan.preset(model, name)
        assert plan is preset.plan
        assert plan.fitted_to(num_layers).depth is None
        assert preset.description.endswith(".")
        assert preset.source.endswith(".")


@pytest.mark.parametrize("shares", [{}, {"mass": 2.0}, {"density": 0.0}, {"density": -0.1}])
def test_impossible_plans_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"needs|must"):
        AttentionPlan.block_sparse(density=shares.get("density"), mass=shares.get("mass"))


def test_plans_cannot_be_changed() -> None:
    layers = {0: DensePolicy()}
    plan = AttentionPlan(layers=layers)
    layers[1] = DensePolicy()
    assert list(plan.layers) == [0]
