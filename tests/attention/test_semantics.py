# SPDX-License-Identifier: Apache-2.0
"""What every backend must do, whichever way it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ns_sparseattn.attention import BackendName, BlockMap, block_sparse_attention

# (batch, heads, queries, keys, head size): one block, ragged blocks, several of everything.
SHAPES = [
    pytest.param((1, 1, 128, 64, 64), id="one-block"),
    pytest.param((1, 2, 1, 1, 32), id="one-token"),
    pytest.param((2, 3, 517, 391, 64), id="ragged"),
    pytest.param((1, 1, 640, 640, 128), id="whole-blocks"),
]


def _random_case(
    shape: tuple[int, ...], dtype: torch.dtype, keep: float = 0.4
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, BlockMap]:
    batch, heads, num_q, num_k, head_size = shape
    generator = torch.Generator().manual_seed(0)

    def random(num_tokens: int) -> torch.Tensor:
        values = torch.randn(batch, heads, num_tokens, head_size, generator=generator)
        return values.to(dtype)

    mask = torch.rand(batch, heads, -(-num_q // 128), -(-num_k // 64), generator=generator) < keep
    return random(num_q), random(num_k), random(num_k), BlockMap.from_mask(mask)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_error_is_at_most_twice_that_of_the_reference(
    shape: tuple[int, ...], backend: BackendName, dtype: torch.dtype
) -> None:
    q, k, v, block_map = _random_case(shape, dtype)
    truth = block_sparse_attention(
        q.double(), k.double(), v.double(), block_map, backend="reference"
    )
    reference = block_sparse_attention(q, k, v, block_map, backend="reference").double()
    out = block_sparse_attention(q, k, v, block_map, backend=backend).double()
    scale = truth.abs().max().clamp_min(1e-30)
    budget = 2 * (reference - truth).abs().max() + 4 * torch.finfo(torch.float32).eps * scale
    assert (out - truth).abs().max() <= budget


@pytest.mark.parametrize("with_key_mask", [False, True])
def test_full_rows_and_sinks_mean_what_the_expanded_mask_says(
    backend: BackendName, with_key_mask: bool
) -> None:
    q, k, v, _ = _random_case((2, 2, 700, 700, 32), torch.float32)
    mask = torch.rand(2, 2, 6, 11) < 0.3
    short = BlockMap.from_mask(mask, num_full_q_blocks=1, num_sink_k_blocks=2)
    key_mask = torch.rand(2, 700) < 0.7 if with_key_mask else None
    expanded = BlockMap.from_mask(short.to_mask())
    out, lse = block_sparse_attention(
        q, k, v, short, backend=backend, key_mask=key_mask, return_lse=True
    )
    want, want_lse = block_sparse_attention(
        q, k, v, expanded, backend="reference", key_mask=key_mask, return_lse=True
    )
    torch.testing.assert_close(out, want, rtol=0, atol=2e-6)
    torch.testing.assert_close(lse, want_lse, rtol=0, atol=2e-6)


def test_masked_keys_do_not_exist_even_if_they_hold_huge_values(backend: BackendName) -> None:
    q, k, v, block_map = _random_case((1, 2, 300, 300, 32), torch.float32, keep=1.0)
    key_mask = torch.ones(1, 300, dtype=torch.bool)
    key_mask[:, 70:200] = False
    want = block_sparse_attention(q, k, v, block_map, backend=backend, key_mask=key_mask)
    k[:, :, 70:200] = 1e4
    v[:, :, 70:200] = 1e30
    out = block_sparse_attention(q, k, v, block_map, backend=backend, key_mask=key_mask)
    assert torch.equal(out, want)


def test_permuting_keys_with_their_blocks_changes_nothing(backend: BackendName) -> None:
    q, k, v, block_map = _random_case((1, 2, 256, 256, 32), torch.float32)
    order = torch.tensor([2, 0, 3, 1])
    tokens = (order[:, None] * 64 + torch.arange(64)).flatten()
    permuted = BlockMap.from_mask(block_map.to_mask()[..., order])
    out = block_sparse_attention(q, k[:, :, tokens], v[:, :, tokens], permuted, backend=backend)
    want = block_sparse_attention(q, k, v, block_map, backend=backend)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-6)


def test_the_batch_slot_does_not_matter(backend: BackendName) -> None:
    q, k, v, block_map = _random_case((2, 2, 300, 300, 32), torch.float32)
    both = block_sparse_attention(q, k, v, block_map, backend=backend)
    alone = BlockMap.from_mask(block_map.to_mask()[1:])
    one = block_sparse_attention(q[1:], k[1:], v[1:], alone, backend=backend)
    assert torch.equal(both[1:], one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_of_the_caller_changes_nothing(backend: BackendName, dtype: torch.dtype) -> None:
    q, k, v, block_map = _random_case((1, 2, 300, 300, 32), dtype)
    want = block_sparse_attention(q, k, v, block_map, backend=backend, return_lse=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = block_sparse_attention(q, k, v, block_map, backend=backend, return_lse=True)
    assert torch.equal(out[0], want[0])
    assert torch.equal(out[1], want[1])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.zeros(1, 1, 4)}, ValueError, r"`q` must have shape"),
        ({"k": torch.zeros(1, 2, 64, 8)}, ValueError, r"`k` must have shape"),
        ({"v": torch.zeros(1, 1, 63, 8)}, ValueError, r"`v` must have shape"),
        ({"v": torch.zeros(1, 1, 64, 8).half()}, TypeError, "share a dtype"),
        ({"q": torch.zeros(1, 1, 128, 8, dtype=torch.int64)}, TypeError, "floating point"),
        ({"q": torch.zeros(1, 1, 0, 8)}, ValueError, "empty"),
        ({"q": torch.zeros(1, 1, 129, 8)}, ValueError, r"`block_map` must cover"),
        ({"key_mask": torch.zeros(1, 64)}, TypeError, "`key_mask` must be boolean"),
        (
            {"key_mask": torch.zeros(1, 3, dtype=torch.bool)},
            ValueError,
            "`key_mask` must have shape",
        ),
        ({"backend": "fast"}, ValueError, "`backend` must be one of"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good: dict[str, Any] = {
        "q": torch.zeros(1, 1, 128, 8),
        "k": torch.zeros(1, 1, 64, 8),
        "v": torch.zeros(1, 1, 64, 8),
        "block_map": BlockMap.from_mask(torch.ones(1, 1, 1, 1, dtype=torch.bool)),
    }
    with pytest.raises(error, match=words):
        block_sparse_attention(**(good | change))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_threads_change_neither_the_result_nor_torchs_settings(mode: Any) -> None:
    q, k, v, block_map = _random_case((2, 3, 517, 391, 64), torch.float32)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mode():
            want = block_sparse_attention(q, k, v, block_map, backend="gather")
        torch.set_num_threads(3)
        with mode():
            out = block_sparse_attention(q, k, v, block_map, backend="gather")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(out, want)


def test_gather_can_be_differentiated() -> None:
    q, k, v, block_map = _random_case((1, 2, 300, 300, 32), torch.float32)
    gradients = []
    for backend in ("reference", "gather"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = block_sparse_attention(leaves[0], leaves[1], leaves[2], block_map, backend=backend)
        out.square().sum().backward()
        gradients.append([x.grad for x in leaves])
    for want, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_row_without_keys_gives_zeros(backend: BackendName) -> None:
    q, k, v, _ = _random_case((2, 1, 300, 130, 32), torch.float32)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 1] = False
    key_mask = torch.ones(2, 130, dtype=torch.bool)
    key_mask[1] = False
    out, lse = block_sparse_attention(
        q, k, v, BlockMap.from_mask(mask), backend=backend, key_mask=key_mask, return_lse=True
    )
    is_empty = torch.zeros(2, 1, 300, dtype=torch.bool)
    is_empty[0, :, 128:256] = True
    is_empty[1] = True
    assert torch.equal(lse.isneginf(), is_empty)
    assert torch.equal((out == 0).all(-1), is_empty)
    assert out.isfinite().all()


def test_nan_reaches_exactly_the_queries_that_see_it(backend: BackendName) -> None:
    q, k, v, _ = _random_case((1, 2, 256, 256, 32), torch.float32)
    mask = torch.ones(1, 2, 2, 4, dtype=torch.bool)
    mask[0, 1, 0, 3] = False
    q[0, 0, 5, 7] = float("nan")
    k[0, 1, 250, 0] = float("nan")
    out, lse = block_sparse_attention(
        q, k, v, BlockMap.from_mask(mask), backend=backend, return_lse=True
    )
    is_bad = torch.zeros(1, 2, 256, dtype=torch.bool)
    is_bad[0, 0, 5] = True
    is_bad[0, 1, 128:] = True
    assert torch.equal(out.isnan().any(-1), is_bad)
    assert torch.equal(out.isnan().all(-1), is_bad)
    assert torch.equal(lse.isnan(), is_bad)


def test_offsets_beyond_two_to_the_31_elements_are_right(backend: BackendName) -> None:
    q, k, v, block_map = _random_case((1, 2, 200, 130, 32), torch.bfloat16)
    want = block_sparse_attention(q, k, v, block_map, backend=backend)
    # Memory that is never touched costs nothing: the two heads lie at its ends.
    memory = torch.empty(2**31 + 2**16, dtype=torch.bfloat16)
    far = [
        memory.as_strided(x.shape, (0, 2**31, 32, 1), offset).copy_(x)
        for offset, x in ((0, q), (1 << 13, k), (1 << 14, v))
    ]
    out = block_sparse_attention(far[0], far[1], far[2], block_map, backend=backend)
    assert torch.equal(out, want)


@pytest.mark.parametrize("coarse", [False, True])
def test_lists_may_be_empty_because_everything_is_a_sink_or_full(
    backend: BackendName, coarse: bool
) -> None:
    q, k, v, _ = _random_case((1, 2, 200, 130, 32), torch.float32)
    mask = torch.ones(1, 2, 2, 3, dtype=torch.bool)
    want = block_sparse_attention(q, k, v, BlockMap.from_mask(mask), backend="reference")
    for counts in ({"num_sink_k_blocks": 3}, {"num_full_q_blocks": 2}):
        block_map = BlockMap.from_mask(mask, **counts)
        out = block_sparse_attention(q, k, v, block_map, backend=backend, coarse=coarse)
        torch.testing.assert_close(out, want, rtol=0, atol=2e-6)
