# SPDX-License-Identifier: Apache-2.0
"""Kept mass and output error of sampled queries, against the definition written plainly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import (
    AttentionPlan,
    AttentionRun,
    DensePolicy,
    FramePolicy,
    KeptMass,
    LayerPolicy,
    LayerStats,
    PaperPolicy,
    TokenLayout,
    record_block_maps,
    record_kept_mass,
    sparsify,
)
from ns_sparseattn.attention.layout import BLOCK_K, BLOCK_Q
from ns_sparseattn.attention.patterns import BlockPattern
from ns_sparseattn.testing.recipe import make_qkv

TOKENS = TokenLayout(num_frames=4, num_special=5, grid_height=9, grid_width=11, num_trailing=1)
"""Patches fill no whole block, and special tokens lie in the middle of the model's order."""
HALF = AttentionPlan.block_sparse(density=0.5, coarse=False)
HALF_COARSE = AttentionPlan.block_sparse(density=0.5, coarse=True)
PAPER = AttentionPlan.paper(sparse_ratio=0.6)


def _qkv(tokens: TokenLayout = TOKENS, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return make_qkv("kept-mass", (batch, 3, tokens.num_tokens, 32), strength=1.0)


def _record(
    plan: AttentionPlan, qkv: tuple[Tensor, Tensor, Tensor], **options: int
) -> tuple[KeptMass, LayerStats, Tensor]:
    run = AttentionRun(plan, TOKENS, 1)
    with record_kept_mass(patterns_of=[0], **options) as masses:
        out = run.attend(0, *qkv)
    return masses[0], run.stats[0], out


def _computed_pairs(plan: AttentionPlan, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Find out by experiment which keys each query attends to, ``[B, H, N, N]`` booleans.

    With the same scores and values that are one for a single key, the output is the weight of that
    key, and zero if it is not computed.
    """
    q, k, _ = qkv
    num_tokens = k.shape[2]
    seen = []
    for start in range(0, num_tokens, 32):
        v = torch.zeros_like(k)
        for channel, key in enumerate(range(start, min(start + 32, num_tokens))):
            v[:, :, key, channel] = 1.0
        out = AttentionRun(plan, TOKENS, 1).attend(0, q.double(), k.double(), v.double())
        seen.append(out > 0)
    return torch.cat(seen, dim=-1)[..., :num_tokens]


@pytest.mark.parametrize(
    "policy",
    [
        HALF.default,
        PAPER.default,
        PaperPolicy(cdf_threshold=0.4, hilbert=True),
        FramePolicy(),
        FramePolicy(with_first_frame=True),
        DensePolicy(),
    ],
    ids=lambda policy: policy.name,
)
def test_mass_is_that_of_the_keys_that_are_really_computed(policy: LayerPolicy) -> None:
    plan, qkv = AttentionPlan(default=policy), _qkv()
    kept, stats, out = _record(plan, qkv, num_queries=10_000)
    assert torch.equal(kept.queries, torch.arange(TOKENS.num_tokens).expand(2, 3, -1))
    q, k, v = (x.double() for x in qkv)
    probabilities = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(32), dim=-1)
    seen = _computed_pairs(plan, qkv)
    mass = (probabilities * seen).sum(-1)
    torch.testing.assert_close(kept.mass.double(), mass, rtol=0, atol=2e-6)
    torch.testing.assert_close(kept.density.double(), seen.double().mean(-1))
    assert kept.mass_with_coarse is None
    # The layer's density counts the padding of the last patches as queries.
    assert float(kept.density.double().mean()) == pytest.approx(stats.density, abs=1e-6)
    dense = probabilities @ v
    error = (out.double() - dense).flatten(2).norm(dim=-1) / dense.flatten(2).norm(dim=-1)
    torch.testing.assert_close(kept.relative_error.double(), error, rtol=1e-4, atol=1e-6)
    assert stats.kept_mass is not None
    assert stats.kept_mass.relative_error == pytest.approx(
        float((out.double() - dense).norm() / dense.norm()), rel=1e-4, abs=1e-6
    )
    assert stats.kept_mass.mean == pytest.approx(float(mass.mean()), abs=1e-6)
    assert stats.kept_mass.min == pytest.approx(float(mass.min()), abs=1e-6)
    assert stats.kept_mass.p5 == pytest.approx(float(mass.flatten().quantile(0.05)), abs=1e-6)


def test_the_coarse_term_adds_what_block_means_contribute() -> None:
    qkv = _qkv()
    without, _, out_without = _record(HALF, qkv)
    kept, stats, out = _record(HALF_COARSE, qkv)
    # The listed blocks are the same.
    torch.testing.assert_close(kept.mass, without.mass)
    assert kept.mass_with_coarse is not None
    assert bool((kept.mass_with_coarse >= kept.mass).all())
    # The mean of exponentials is at least the exponential of the mean.
    assert bool((kept.mass_with_coarse <= 1 + 1e-5).all())
    assert float(kept.mass_with_coarse.mean()) > float(kept.mass.mean()) + 0.01
    assert stats.kept_mass is not None
    assert stats.kept_mass.mean_with_coarse == pytest.approx(float(kept.mass_with_coarse.mean()))
    assert stats.kept_mass.min_with_coarse == pytest.approx(float(kept.mass_with_coarse.min()))
    # By hand for one query: the sum of weights of the operation over that of dense attention.
    q, k, _ = (x.double() for x in qkv)
    assert isinstance(kept.pattern, BlockPattern)
    b, h, query = 1, 2, kept.queries[1, 2, 7]
    scores = k[b, h] @ q[b, h, query] / math.sqrt(32)
    total = scores.exp().sum()
    sparse = torch.zeros((), dtype=torch.float64)
    places = torch.arange(kept.pattern.gather_index.shape[1])
    is_kept = kept.pattern.blocks_of(b, h, query[None])[0]
    assert kept.pattern.key_mask is not None
    for block in range(kept.pattern.block_map.num_k_blocks):
        in_block = (places // BLOCK_K == block) & kept.pattern.key_mask[0]
        keys = kept.pattern.gather_index[b % len(kept.pattern.gather_index), in_block]
        if is_kept[block]:
            sparse += scores[keys].exp().sum()
        elif len(keys):
            sparse += len(keys) * scores[keys].mean().exp()
    assert float(kept.mass_with_coarse[b, h, 7]) == pytest.approx(float(sparse / total), abs=1e-6)
    assert not torch.equal(out, out_without)


def test_keeping_everything_keeps_all_mass_without_error() -> None:
    kept, stats, _ = _record(AttentionPlan.block_sparse(density=1.0), _qkv())
    torch.testing.assert_close(kept.mass, torch.ones_like(kept.mass), rtol=0, atol=1e-6)
    assert bool((kept.density == 1).all())
    assert stats.kept_mass is not None
    assert stats.kept_mass.relative_error < 1e-6


def test_more_blocks_keep_more_mass() -> None:
    qkv = _qkv()
    masses = [
        _record(AttentionPlan.block_sparse(density=density, coarse=False), qkv)[0].mass
        for density in (0.1, 0.3, 0.6, 1.0)
    ]
    for fewer, more in zip(masses, masses[1:], strict=False):
        assert bool((more >= fewer - 1e-6).all())


def test_queries_are_random_without_repetition_and_the_same_for_the_same_seed() -> None:
    qkv = _qkv()
    kept, stats, _ = _record(HALF, qkv, num_queries=50)
    assert kept.queries.shape == kept.mass.shape == (2, 3, 50)
    assert all(len(row.unique()) == 50 for row in kept.queries.flatten(0, 1))
    assert not torch.equal(kept.queries[0, 0], kept.queries[0, 1])
    again, _, _ = _record(HALF, qkv, num_queries=50)
    assert torch.equal(kept.queries, again.queries)
    assert torch.equal(kept.mass, again.mass)
    other, _, _ = _record(HALF, qkv, num_queries=50, seed=1)
    assert not torch.equal(kept.queries, other.queries)
    assert stats.kept_mass is not None
    assert stats.kept_mass.num_queries == 50
    # A sample stands for all.
    everything, _, _ = _record(HALF, qkv, num_queries=10_000)
    assert float(kept.mass.mean()) == pytest.approx(float(everything.mass.mean()), abs=0.05)


def test_chunks_of_queries_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from ns_sparseattn.attention import kept_mass

    want, _, _ = _record(HALF_COARSE, _qkv())
    monkeypatch.setattr(kept_mass, "_SCORES_PER_CHUNK", 7 * TOKENS.num_tokens)
    got, _, _ = _record(HALF_COARSE, _qkv())
    torch.testing.assert_close(got.mass, want.mass)
    assert got.mass_with_coarse is not None
    assert want.mass_with_coarse is not None
    torch.testing.assert_close(got.mass_with_coarse, want.mass_with_coarse)
    torch.testing.assert_close(got.relative_error, want.relative_error)


def test_nothing_is_measured_unless_asked() -> None:
    run = AttentionRun(HALF, TOKENS, 1)
    run.attend(0, *_qkv())
    assert run.stats[0].kept_mass is None
    with record_kept_mass() as masses:
        pass
    run.attend(0, *_qkv())
    assert masses == {}


def test_low_precision_is_compared_with_dense_attention_of_the_same_values() -> None:
    qkv = tuple(x.bfloat16() for x in _qkv())
    with torch.autocast("cpu", torch.bfloat16):
        kept, _, _ = _record(AttentionPlan.block_sparse(density=1.0), (qkv[0], qkv[1], qkv[2]))
    torch.testing.assert_close(kept.mass, torch.ones_like(kept.mass), rtol=0, atol=1e-5)
    assert 1e-5 < float(kept.relative_error.max()) < 1e-2, "the rounding of the output to 8 bits"


@pytest.mark.parametrize(
    "plan", [HALF, AttentionPlan.block_sparse(mass=0.7), PAPER], ids=["density", "mass", "paper"]
)
def test_densities_of_rows_are_those_of_their_queries(plan: AttentionPlan) -> None:
    kept, _, _ = _record(plan, _qkv(), num_queries=10_000)
    pattern = kept.pattern
    assert isinstance(pattern, BlockPattern)
    rows = kept.row_density
    assert rows is not None
    assert kept.list_lengths is not None
    assert torch.equal(kept.list_lengths, pattern.block_map.counts)
    assert rows.shape == kept.list_lengths.shape
    places = pattern.scatter_index[0]
    is_listed = places < min(pattern.num_queries, pattern.block_map.num_listed_q_blocks * BLOCK_Q)
    of_queries = rows[:, :, places[is_listed] // BLOCK_Q]
    torch.testing.assert_close(kept.density[:, :, is_listed], of_queries.float())
    assert bool((kept.density[:, :, ~is_listed] == 1).all())


def test_models_that_were_made_sparse_are_measured() -> None:
    from ns_sparseattn.testing.lookalikes import VggtLookalike

    torch.manual_seed(0)
    model = VggtLookalike().eval()
    images = torch.rand(1, 4, 3, 14 * 9, 14 * 11, generator=torch.Generator().manual_seed(4))
    with (
        torch.no_grad(),
        sparsify(model, HALF_COARSE) as stats,
        record_block_maps() as maps,
        record_kept_mass(num_queries=20) as masses,
    ):
        model(images)
    assert sorted(masses) == sorted(maps) == [0, 1, 2]
    assert all(kept.pattern is None for kept in masses.values()), "maps may be large"
    for layer in stats.layers:
        assert layer.kept_mass is not None
        assert layer.kept_mass == masses[layer.layer].summary()
        assert 0 < layer.kept_mass.min <= layer.kept_mass.p5 <= layer.kept_mass.mean < 1


def test_a_number_of_queries_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_queries` must be at least 1, got 0"):
        record_kept_mass(num_queries=0).__enter__()
