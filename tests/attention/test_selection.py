# SPDX-License-Identifier: Apache-2.0
"""Block selection: the mass asked for is reached, bounds hold, empty blocks stay out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ns_sparseattn.attention import select_blocks, selection


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


def _sorted_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    mass: float | None,
    least: int,
    most: int,
    key_mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The selection by sorting in float64, ``[1, H, R, C]``, and the rows without a near tie."""
    heads, num_tokens, head_size = q.shape[1:]
    num_columns = math.ceil(num_tokens / 64)
    q_means = F.pad(q.double(), (0, 0, 0, -num_tokens % 128)).unflatten(2, (-1, 128)).sum(3)
    sizes = F.pad(torch.ones(num_tokens), (0, -num_tokens % 128)).unflatten(0, (-1, 128)).sum(-1)
    q_means = q_means / sizes[:, None]
    exists = F.pad(key_mask[0].double(), (0, -num_tokens % 64)).unflatten(0, (-1, 64))
    k_blocks = F.pad(k.double(), (0, 0, 0, -num_tokens % 64)).unflatten(2, (-1, 64))
    counts = exists.sum(-1)
    k_means = (k_blocks * exists[None, None, ..., None]).sum(3) / counts.clamp_min(1)[:, None]
    scores = q_means @ k_means.transpose(-1, -2) / math.sqrt(head_size) + counts.log()
    present = int((counts > 0).sum())
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    reached = ordered.softmax(-1).cumsum(-1)
    needed = torch.full(scores.shape[:3], min(most if mass is None else least, present))
    is_clear = torch.ones_like(needed, dtype=torch.bool)
    if mass is not None:
        needed = needed.maximum((reached < mass).sum(-1) + 1)
        is_clear = ((reached - mass).abs() > 1e-5).all(-1)
    needed = needed.clamp(max=min(most, present))
    mask = torch.arange(num_columns) < needed[..., None]
    kept_last = ordered.gather(-1, needed[..., None] - 1)
    next_best = F.pad(ordered, (0, 1), value=float("-inf")).gather(-1, needed[..., None])
    is_clear &= (kept_last - next_best)[..., 0] > 1e-5 * kept_last[..., 0].abs().clamp_min(1.0)
    assert heads == needed.shape[1]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, mask), is_clear


@pytest.mark.parametrize("kind", ["random", "clustered", "peaked"])
@pytest.mark.parametrize("num_tokens", [64, 200, 1280, 3000])
@pytest.mark.parametrize("is_masked", [False, True], ids=["all-keys", "masked"])
def test_sorting_in_float64_selects_the_same(kind: str, num_tokens: int, is_masked: bool) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    q, k = _clustered(num_tokens), _clustered(num_tokens, seed=1)
    if kind == "random":
        q, k = (torch.randn(q.shape, generator=generator) * 3 for _ in range(2))
    elif kind == "peaked":
        q, k = 20 * q, 20 * k
    key_mask = torch.ones(1, num_tokens, dtype=torch.bool)
    if is_masked:
        key_mask = torch.rand(1, num_tokens, generator=generator) < 0.5
        key_mask[:, 70:260] = False
        key_mask[:, 3] = True
    num_columns = math.ceil(num_tokens / 64)
    num_clear = num_rows = 0
    for mass, low, high in (
        (None, 0.0, 0.25),
        (None, 0.0, 1.0),
        (0.5, 0.0, 1.0),
        (0.95, 0.0, 1.0),
        (0.9, 0.3, 0.6),
    ):
        got = select_blocks(
            q, k, mass=mass, min_density=low, max_density=high, key_mask=key_mask
        ).to_mask()
        least, most = (max(math.ceil(share * num_columns), 1) for share in (low, high))
        want, is_clear = _sorted_reference(
            q, k, mass=mass, least=least, most=most, key_mask=key_mask
        )
        assert torch.equal(got[is_clear], want[is_clear])
        num_clear, num_rows = num_clear + int(is_clear.sum()), num_rows + is_clear.numel()
    assert num_clear > 0.9 * num_rows, "near ties must be rare, or this compares nothing"


def test_equal_blocks_are_taken_from_the_first_on() -> None:
    q = torch.ones(1, 1, 128, 8)
    k = torch.ones(1, 1, 640, 8)
    assert select_blocks(q, k, mass=0.45).columns.tolist() == [0, 1, 2, 3, 4]
    assert select_blocks(q, k, max_density=0.3).columns.tolist() == [0, 1, 2]
    assert select_blocks(q, k, mass=0.9, max_density=0.2).columns.tolist() == [0, 1]


def test_all_of_the_mass_is_all_blocks_that_have_keys() -> None:
    q, k = 30 * _clustered(640), 30 * _clustered(640, seed=1)
    key_mask = torch.ones(1, 640, dtype=torch.bool)
    key_mask[:, 64:128] = False
    assert select_blocks(q, k, mass=1.0, key_mask=key_mask).counts.unique().tolist() == [9]


def test_a_share_that_means_a_whole_number_keeps_that_number() -> None:
    # 0.07 * 100 is 7.000000000000001 in float64.
    q = torch.randn(1, 1, 6400, 8, generator=torch.Generator().manual_seed(0))
    assert select_blocks(q, q, max_density=0.07).counts.unique().tolist() == [7]


@pytest.mark.parametrize("as_tensor", [False, True], ids=["tuple", "tensor"])
def test_heads_may_have_shares_of_their_own(as_tensor: bool) -> None:
    q, k = _clustered(1280, heads=3), _clustered(1280, heads=3, seed=1)
    masses, low, high = (0.3, 0.9, 0.6), (0.0, 0.1, 0.4), (1.0, 0.2, 0.5)
    got = select_blocks(
        q,
        k,
        mass=torch.tensor(masses) if as_tensor else masses,
        min_density=torch.tensor(low) if as_tensor else low,
        max_density=torch.tensor(high) if as_tensor else high,
    ).to_mask()
    for head in range(3):
        alone = slice(head, head + 1)
        want = select_blocks(
            q[:, alone],
            k[:, alone],
            mass=masses[head],
            min_density=low[head],
            max_density=high[head],
        )
        assert torch.equal(got[:, alone], want.to_mask())
    density = select_blocks(q, k, max_density=(0.1, 0.5, 1.0)).counts[0, :, 0]
    assert density.tolist() == [2, 10, 20]


def test_slots_of_a_batch_do_not_mix() -> None:
    q, k = _clustered(640, heads=4), _clustered(640, heads=4, seed=1)
    q, k = q.reshape(2, 2, 640, 32), k.reshape(2, 2, 640, 32)
    key_mask = torch.ones(2, 640, dtype=torch.bool)
    key_mask[1, 100:330] = False
    together = select_blocks(q, k, mass=0.7, key_mask=key_mask).to_mask()
    for b in (0, 1):
        slot = slice(b, b + 1)
        alone = select_blocks(q[slot], k[slot], mass=0.7, key_mask=key_mask[slot])
        assert torch.equal(together[slot], alone.to_mask())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_types_select_as_their_values_in_float32_do(dtype: torch.dtype) -> None:
    q, k = _clustered(1280).to(dtype), _clustered(1280, seed=1).to(dtype)
    got = select_blocks(q, k, mass=0.7)
    assert torch.equal(got.columns, select_blocks(q.float(), k.float(), mass=0.7).columns)


class _LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("options", [{"max_density": 0.05}, {"mass": 0.01}])
def test_the_pooled_scores_are_never_there_as_a_whole(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise other threads would do the work, unseen.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(selection, "_SCORES_PER_CHUNK", {"cpu": 4096})
    num_tokens, heads = 32768, 2
    q = torch.randn(1, heads, num_tokens, 1, generator=torch.Generator().manual_seed(0))
    with _LargestTensor() as largest:
        block_map = select_blocks(q, q, **options)
    num_scores = heads * (num_tokens // 128) * (num_tokens // 64)
    assert len(block_map.columns) < 0.06 * num_scores
    assert largest.numel <= q.numel() == num_scores // 4


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    q = _clustered(1280)
    want = select_blocks(q, q, mass=0.6)
    monkeypatch.setattr(selection, "_SCORES_PER_CHUNK", {"cpu": 1})
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
        ({"mass": float("nan")}, "`mass` must be in"),
        ({"mass": (0.5, 1.5)}, "`mass` must be in"),
        ({"mass": (0.5, 0.5, 0.5)}, "`mass` must be one number or one for each of 2 heads, got 3"),
        ({"max_density": torch.ones(3)}, r"`max_density` must have shape \[2\]"),
        ({"min_density": (0.1, 0.6), "max_density": 0.5}, "Density bounds"),
        ({"mass": 0.5, "num_full_q_blocks": 2}, "`num_full_q_blocks` must be 0 to 1"),
        ({"mass": 0.5, "num_sink_k_blocks": -1}, "`num_sink_k_blocks` must be 0 to 2"),
    ],
)
def test_bad_shares_are_named(options: dict[str, Any], words: str) -> None:
    q = _clustered(128)
    with pytest.raises(ValueError, match=words):
        select_blocks(q, q, **options)


@pytest.mark.parametrize("name", ["q", "k"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("options", [{"mass": 0.5}, {"max_density": 0.5}])
def test_what_is_not_finite_is_named(name: str, value: float, options: dict[str, Any]) -> None:
    tensors = {"q": _clustered(640), "k": _clustered(640)}
    tensors[name][0, 1, 300, 5] = value
    with pytest.raises(ValueError, match=f"`{name}` must be finite, got NaN or infinity .* of 1 "):
        select_blocks(tensors["q"], tensors["k"], **options)


def test_scores_that_overflow_are_named() -> None:
    q = torch.full((1, 1, 128, 8), 1e25)
    with pytest.raises(ValueError, match="`q` and `k` must be small enough for finite scores"):
        select_blocks(q, q, mass=0.5)


def test_masked_keys_need_not_be_finite() -> None:
    q, k = _clustered(640), _clustered(640, seed=1)
    key_mask = torch.ones(1, 640, dtype=torch.bool)
    key_mask[:, 100:200] = False
    want = select_blocks(q, k, mass=0.7, key_mask=key_mask)
    k[:, :, 100:200] = float("nan")
    assert torch.equal(select_blocks(q, k, mass=0.7, key_mask=key_mask).columns, want.columns)


def test_keys_that_are_all_masked_are_named_by_slot() -> None:
    q = torch.zeros(3, 1, 200, 8)
    key_mask = torch.ones(3, 200, dtype=torch.bool)
    key_mask[1] = False
    with pytest.raises(ValueError, match=r"at least one key in each batch slot, got none in .*1\]"):
        select_blocks(q, q, mass=0.5, key_mask=key_mask)


def test_rows_list_nothing_if_only_sinks_have_keys() -> None:
    q = _clustered(256)
    key_mask = torch.zeros(1, 256, dtype=torch.bool)
    key_mask[:, 192:] = True
    block_map = select_blocks(q, q, mass=0.5, key_mask=key_mask, num_sink_k_blocks=1)
    assert block_map.counts.tolist() == [[[0, 0], [0, 0]]]
    everything = select_blocks(q, q, mass=0.5, num_sink_k_blocks=4, num_full_q_blocks=2)
    assert len(everything.columns) == 0


@pytest.mark.parametrize(
    ("shape_q", "shape_k", "words"),
    [
        ((1, 2, 0, 8), (1, 2, 64, 8), "`q` must hold at least one token"),
        ((1, 2, 64, 8), (1, 2, 0, 8), "`k` must hold at least one token"),
        ((0, 2, 64, 8), (0, 2, 64, 8), "`q` must hold at least one token"),
        ((1, 2, 64, 8), (1, 3, 64, 8), r"`k` must have shape \[1, 2, Nk, 8\], got \[1, 3, 64, 8"),
        ((1, 2, 64, 8), (1, 2, 64, 4), r"`k` must have shape \[1, 2, Nk, 8\], got \[1, 2, 64, 4"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    shape_q: tuple[int, ...], shape_k: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        select_blocks(torch.zeros(shape_q), torch.zeros(shape_k), mass=0.5)


def test_masks_that_do_not_fit_are_named() -> None:
    q = torch.zeros(1, 1, 200, 8)
    with pytest.raises(ValueError, match=r"`key_mask` must have shape \[1, 200\]"):
        select_blocks(q, q, mass=0.5, key_mask=torch.ones(1, 100, dtype=torch.bool))
    with pytest.raises(TypeError, match="`key_mask` must be boolean"):
        select_blocks(q, q, mass=0.5, key_mask=torch.ones(1, 200))
