# SPDX-License-Identifier: Apache-2.0
"""Block selection: the mass asked for is reached, bounds hold, empty blocks stay out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ns_sparseattn.attention import select_blocks


def _clustered(num_tokens: int, *, heads: int = 2, seed: int = 0) -> torch.Tensor:
    """Tokens in runs around shared centres: attention between blocks is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(1, heads, 8, 32, generator=generator) * 1.5
    cluster = (torch.arange(num_tokens) // 50) % 8
    return centres[:, :, cluster] + 0.5 * torch.randn(1, heads, num_tokens, 32, generator=generator)


def _pooled_share(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """The pooled softmax written plainly; token counts must be multiples of the blocks."""
    q_means = q.unflatten(2, (-1, 128)).mean(3)
    k_means = k.unflatten(2, (-1, 64)).mean(3)
    return torch.softmax(q_means @ k_means.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)


@pytest.mark.parametrize("mass", [0.3, 0.6, 0.9, 0.97])
def test_mass_is_reached_by_the_fewest_blocks(mass: float) -> None:
    q, k = _clustered(1280), _clustered(1280, seed=1)
    share = _pooled_share(q, k)
    kept = select_blocks(q, k, mass=mass).to_mask()
    reached = (share * kept).sum(-1)
    assert bool((reached >= mass - 1e-6).all())
    least_kept = share.masked_fill(~kept, 2.0).amin(-1)
    assert bool((reached - least_kept < mass).all()), "one block fewer would have done"
    assert bool((least_kept >= share.masked_fill(kept, -1.0).amax(-1) - 1e-6).all()), "not the best"


@pytest.mark.parametrize("density", [0.05, 0.25, 0.5, 1.0])
def test_density_alone_keeps_that_share_of_blocks(density: float) -> None:
    q = _clustered(1280)
    counts = select_blocks(q, q, max_density=density).counts
    assert counts.unique().tolist() == [math.ceil(density * 20)]


def test_bounds_win_over_mass() -> None:
    q = _clustered(1280)
    few = select_blocks(q, q, mass=0.999, max_density=0.2).counts
    many = select_blocks(q, q, mass=0.01, min_density=0.5).counts
    assert int(few.max()) == 4
    assert int(many.min()) == 10


def test_more_mass_never_drops_a_block() -> None:
    q, k = _clustered(1280), _clustered(1280, seed=1)
    masks = [select_blocks(q, k, mass=mass).to_mask() for mass in (0.2, 0.5, 0.8, 1.0)]
    for fewer, more in zip(masks, masks[1:], strict=False):
        assert bool((more | ~fewer).all())


def test_blocks_without_keys_are_never_chosen() -> None:
    q = _clustered(640)
    key_mask = torch.ones(1, 640, dtype=torch.bool)
    key_mask[:, 128:320] = False
    mask = select_blocks(q, q, max_density=1.0, key_mask=key_mask).to_mask()
    assert not bool(mask[..., 2:5].any())
    assert bool(mask[..., [0, 1, 5, 6, 7, 8, 9]].all())


def test_masked_tokens_do_not_enter_the_means() -> None:
    q = _clustered(640)
    key_mask = torch.rand(1, 640) < 0.5
    want = select_blocks(q, q, mass=0.7, key_mask=key_mask).to_mask()
    changed = q.masked_fill(~key_mask[:, None, :, None], 1e5)
    assert torch.equal(select_blocks(q, changed, mass=0.7, key_mask=key_mask).to_mask(), want)


def test_a_ragged_block_is_weighed_by_its_keys() -> None:
    # Two key blocks with equal mean scores, 64 keys and 16 keys: shares of 0.8 and 0.2.
    q = torch.zeros(1, 1, 128, 8)
    k = torch.zeros(1, 1, 80, 8)
    assert select_blocks(q, k, mass=0.79).columns.tolist() == [0]
    assert select_blocks(q, k, mass=0.81).columns.tolist() == [0, 1]


def test_full_rows_and_sinks_take_no_part() -> None:
    q = _clustered(640)
    block_map = select_blocks(q, q, max_density=0.25, num_full_q_blocks=1, num_sink_k_blocks=2)
    assert block_map.counts.shape == (1, 2, 4)
    assert int(block_map.columns.max()) < 8
    assert bool(block_map.to_mask()[..., -2:].all())


def test_autocast_of_the_caller_changes_nothing() -> None:
    q, k = _clustered(1280), _clustered(1280, seed=1)
    want = select_blocks(q, k, mass=0.6)
    with torch.autocast("cpu", torch.bfloat16):
        got = select_blocks(q, k, mass=0.6)
    assert torch.equal(got.columns, want.columns)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from ns_sparseattn.attention import selection

    q = _clustered(1280)
    want = select_blocks(q, q, mass=0.6)
    monkeypatch.setattr(selection, "_SCORES_PER_CHUNK", 1)
    got = select_blocks(q, q, mass=0.6)
    assert torch.equal(got.columns, want.columns)
    assert torch.equal(got.row_offsets, want.row_offsets)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mass": 0.0}, "`mass` must be in"),
        ({"mass": 1.5}, "`mass` must be in"),
        ({"min_density": 0.6, "max_density": 0.5}, "Density bounds"),
        ({"max_density": 1.1}, "Density bounds"),
    ],
)
def test_bad_shares_are_named(options: dict[str, Any], words: str) -> None:
    q = _clustered(128)
    with pytest.raises(ValueError, match=words):
        select_blocks(q, q, **options)


def test_nan_is_named() -> None:
    q = F.pad(torch.zeros(1, 1, 127, 8), (0, 0, 0, 1), value=float("nan"))
    with pytest.raises(ValueError, match="must be finite"):
        select_blocks(q, q, mass=0.5)
