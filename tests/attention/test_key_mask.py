# SPDX-License-Identifier: Apache-2.0
"""Masked patches are no keys: of no policy, no backend, no selection and no mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import (
    AttentionPlan,
    AttentionRun,
    BlockSparsePolicy,
    FramePolicy,
    TokenLayout,
    record_kept_mass,
)
from ns_sparseattn.attention.backends import BackendName
from ns_sparseattn.attention.plan import LayerPolicy, PatchOrder

HEADS, SIZE = 2, 16
TOKENS = TokenLayout(num_frames=5, num_special=3, grid_height=9, grid_width=12, num_trailing=1)


def sparse(order: PatchOrder, backend: BackendName) -> AttentionPlan:
    return AttentionPlan(default=BlockSparsePolicy(max_density=0.4, order=order, backend=backend))


PLANS = {
    "dense": AttentionPlan.dense(),
    "frames": AttentionPlan(default=FramePolicy()),
    "first frame": AttentionPlan(default=FramePolicy(with_first_frame=True)),
    "paper": AttentionPlan.paper(sparse_ratio=0.5),
    "tiles, gather": sparse("tiles", "gather"),
    "raster, gather": sparse("raster", "gather"),
    "hilbert, reference": sparse("hilbert", "reference"),
    "tiles, auto": sparse("tiles", "auto"),
}


def draw(batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, HEADS, TOKENS.num_tokens, SIZE, generator=generator)
    return q, k, v


def draw_mask(batch: int = 1, seed: int = 1) -> Tensor:
    """A third of the patches, and all of frame 2."""
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(batch, TOKENS.num_frames, TOKENS.num_patches, generator=generator) < 0.33
    masked[:, 2] = True
    mask = torch.ones(batch, TOKENS.num_tokens, dtype=torch.bool)
    mask[:, TOKENS.patch_ids().flatten()] = ~masked.flatten(1)
    return mask


def attend(plan: AttentionPlan, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None) -> Tensor:
    return AttentionRun(plan, TOKENS, 1, key_mask=mask).attend(0, *qkv)


@pytest.mark.parametrize("name", PLANS)
def test_masked_patches_do_not_matter_to_the_others(name: str) -> None:
    mask = draw_mask()
    before = attend(PLANS[name], draw(), mask)
    changed = [
        torch.where(mask[:, None, :, None], x, other)
        for x, other in zip(draw(), draw(seed=9), strict=True)
    ]
    after = attend(PLANS[name], (changed[0], changed[1], changed[2]), mask)
    kept = mask[0]
    assert torch.equal(before[:, :, kept], after[:, :, kept])
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("name", PLANS)
def test_they_matter_without_a_mask(name: str) -> None:
    mask = draw_mask()
    q, k, v = draw()
    other = torch.where(mask[:, None, :, None], k, -k)
    before, after = attend(PLANS[name], (q, k, v), None), attend(PLANS[name], (q, other, v), None)
    assert not torch.equal(before[:, :, mask[0]], after[:, :, mask[0]])


def test_all_blocks_kept_is_dense_attention() -> None:
    for batch in (1, 2):
        mask, qkv = draw_mask(batch), draw(batch)
        dense = attend(AttentionPlan.dense(), qkv, mask)
        policies: tuple[LayerPolicy, ...] = (
            BlockSparsePolicy(mass=1.0),
            BlockSparsePolicy(max_density=1.0, order="raster"),
        )
        for policy in policies:
            sparse = attend(AttentionPlan(default=policy), qkv, mask)
            assert torch.allclose(sparse, dense, atol=2e-6)
    paper = AttentionPlan.paper(sparse_ratio=0.001, cdf_threshold=1.0)
    mask, qkv = draw_mask(), draw()
    assert torch.allclose(
        attend(paper, qkv, mask), attend(AttentionPlan.dense(), qkv, mask), atol=2e-6
    )


def test_dense_attention_is_the_formula() -> None:
    mask = draw_mask(2)
    q, k, v = (x.double() for x in draw(2))
    scores = (q @ k.mT / SIZE**0.5).masked_fill(~mask[:, None, None], -torch.inf)
    expected = scores.softmax(-1) @ v
    assert torch.allclose(attend(AttentionPlan.dense(), (q, k, v), mask), expected, atol=1e-12)


@pytest.mark.parametrize("name", PLANS)
def test_everything_masked_leaves_the_special_tokens(name: str) -> None:
    mask = torch.ones(1, TOKENS.num_tokens, dtype=torch.bool)
    mask[:, TOKENS.patch_ids().flatten()] = False
    assert torch.isfinite(attend(PLANS[name], draw(), mask)).all()


@pytest.mark.parametrize("name", ["dense", "paper", "tiles, gather", "first frame"])
def test_kept_mass_is_of_the_keys_that_exist(name: str) -> None:
    mask = draw_mask()
    with record_kept_mass(num_queries=2000) as masses:
        attend(PLANS[name], draw(), mask)
    assert float(masses[0].mass.max()) <= 1 + 1e-5
    assert float(masses[0].density.max()) <= 1
    if name == "dense":
        assert torch.allclose(masses[0].mass, torch.ones(()))
        assert float(masses[0].relative_error.max()) < 1e-5


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`key_mask` must have shape \[B, 556\], got \[1, 7\]"):
        AttentionRun(AttentionPlan.dense(), TOKENS, 1, key_mask=torch.ones(1, 7).bool())
    mask = torch.zeros(1, TOKENS.num_tokens, dtype=torch.bool)
    with pytest.raises(ValueError, match="`key_mask` must be true for special tokens"):
        AttentionRun(AttentionPlan.dense(), TOKENS, 1, key_mask=mask)
    with pytest.raises(ValueError, match="`q` must have the 2 scenes of the mask, got 1"):
        attend(AttentionPlan.dense(), draw(1), draw_mask(2))
    with pytest.raises(ValueError, match="`key_mask` must be of one scene under the published"):
        attend(PLANS["paper"], draw(2), draw_mask(2))
