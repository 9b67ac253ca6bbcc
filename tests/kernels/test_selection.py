# SPDX-License-Identifier: Apache-2.0
"""The selection kernels under Triton's interpreter: what they keep is what the torch path keeps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention import select_blocks, selection
from ns_sparseattn.attention.limits import KeptLimits, Shares

pytestmark = pytest.mark.usefixtures("interpreter")


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _means(
    batch: int, heads: int, num_rows: int, num_columns: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled queries and keys of very uneven attention, and counts with a ragged last block."""
    q, k = _random(batch, heads, num_rows, size, seed=0), _random(batch, heads, 1, size, seed=1)
    k = k + 2 * _random(batch, heads, num_columns, size, seed=2)
    counts = torch.full((batch, num_columns), 64)
    counts[:, -1] = 13
    return q, k, counts


def _select(means: tuple[Tensor, Tensor, Tensor], limits: KeptLimits) -> tuple[Tensor, Tensor]:
    from ns_sparseattn.kernels.selection import select_columns

    return select_columns(*means, mass=limits.mass, least=limits.least, most=limits.most)


def _assert_same(means: tuple[Tensor, Tensor, Tensor], limits: KeptLimits) -> None:
    counts, columns = _select(means, limits)
    want_counts, want_columns = selection._select(*means, limits)
    assert torch.equal(counts, want_counts)
    assert torch.equal(columns, want_columns)
    assert (counts.dtype, columns.dtype) == (torch.int64, torch.int32)


# (batch, heads, query blocks, key blocks, head size): one of each, ragged tiles, whole tiles.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 32), (2, 2, 21, 70, 64), (1, 1, 16, 64, 128), (1, 2, 5, 200, 48)]
)
@pytest.mark.parametrize(
    ("mass", "min_density", "max_density"),
    [(None, 0.0, 0.25), (0.6, 0.0, 1.0), (0.95, 0.05, 0.3), (1.0, 0.0, 1.0)],
)
def test_it_keeps_what_the_torch_path_keeps(
    shape: tuple[int, int, int, int, int],
    mass: Shares | None,
    min_density: float,
    max_density: float,
) -> None:
    limits = KeptLimits.of(mass, min_density, max_density, shape[1], shape[3])
    _assert_same(_means(*shape), limits)


def test_shares_may_differ_between_heads() -> None:
    limits = KeptLimits.of((0.3, 0.6, 0.9), (0.0, 0.2, 0.1), (0.5, 0.6, 1.0), 3, 70)
    _assert_same(_means(1, 3, 21, 70, 32), limits)


def test_of_equal_scores_the_first_are_kept() -> None:
    q, k, counts = _means(1, 2, 20, 70, 32)
    k[:, :, 10:40] = k[:, :, 9:10]
    q[:, :, 3] = 0.0
    q[:, :, 4] *= 1e-30
    for mass, density in ((None, 0.25), (0.5, 1.0), (0.9, 0.4)):
        _assert_same((q, k, counts), KeptLimits.of(mass, 0.0, density, 2, 70))
    ids = _select((q * 0, k, counts), KeptLimits.of(None, 0.0, 0.1, 2, 70))[1]
    assert ids.reshape(-1, 7).unique(dim=0).tolist() == [list(range(7))]


def test_blocks_without_keys_are_never_kept() -> None:
    q, k, counts = _means(3, 2, 20, 70, 32)
    counts[0, 5:40] = 0
    counts[1, :69] = 0
    counts[2] = 0
    means = (q, k, counts)
    for mass, density in ((None, 1.0), (0.8, 0.6)):
        _assert_same(means, KeptLimits.of(mass, 0.0, density, 2, 70))


@pytest.mark.parametrize("num_programs", ["few", "many"])
def test_both_tiles_keep_the_same(num_programs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ns_sparseattn.kernels import configs

    monkeypatch.setattr(configs, "MANY_ROWS", 1 if num_programs == "many" else 1 << 30)
    _assert_same(_means(1, 1, 70, 90, 64), KeptLimits.of(0.7, 0.0, 1.0, 1, 90))


@pytest.mark.parametrize("change", [-4e-3, 4e-3])
def test_lists_hold_even_if_the_scores_of_the_second_kernel_differ(
    change: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the two kernels had rounded differently: lists are full, ascending and without doubles.
    from ns_sparseattn.kernels import selection as kernels

    means = _means(2, 2, 21, 70, 32)
    means[2][0, 30:50] = 0
    limits = KeptLimits.of(0.7, 0.0, 1.0, 2, 70)
    want, _ = _select(means, limits)
    emit = kernels._emit_kernel

    class Changed:
        def __getitem__(self, grid: tuple[int, ...]):
            launch = emit[grid]
            return lambda q, *others, **constants: launch(q * (1 + change), *others, **constants)

    monkeypatch.setattr(kernels, "_emit_kernel", Changed())
    counts, columns = _select(means, limits)
    assert torch.equal(counts, want)
    num_present = (means[2] > 0).repeat_interleave(2 * 21, dim=0)
    for ids, present in zip(columns.split(counts.tolist()), num_present, strict=True):
        assert bool((ids.diff() > 0).all())
        assert bool(present[ids.long()].all())


def test_select_blocks_uses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = _random(1, 2, 700, 32, seed=0), _random(1, 2, 700, 32, seed=1)
    key_mask = torch.ones(1, 700, dtype=torch.bool)
    key_mask[:, 500:640] = False

    def select() -> tuple[Tensor, Tensor]:
        block_map = select_blocks(
            q, k, mass=0.7, num_full_q_blocks=1, num_sink_k_blocks=1, key_mask=key_mask
        )
        return block_map.row_offsets, block_map.columns

    in_kernels = select()
    monkeypatch.setattr(selection, "_has_kernels", lambda means: False)
    in_torch = select()
    assert all(torch.equal(a, b) for a, b in zip(in_kernels, in_torch, strict=True))
    monkeypatch.undo()
    monkeypatch.setattr(selection, "_select", None)
    select()


def test_kernels_say_what_they_cannot_take() -> None:
    from ns_sparseattn.kernels.selection import why_not

    assert why_not(torch.zeros(1, 1, 1, 128)) is None
    assert "float32" in str(why_not(torch.zeros(1, 1, 1, 8, dtype=torch.float64)))
    assert "at most 128" in str(why_not(torch.zeros(1, 1, 1, 256)))


def test_a_million_tokens_fit() -> None:
    from ns_sparseattn.kernels.selection import selection_memory

    # 1000 photos of 518 x 392 pixels, 16 heads of 64 channels, a tenth of the blocks.
    memory = selection_memory(1_041_000, num_heads=16, head_size=64, density=0.1)
    num_scores = 16 * 8133 * 16_266
    assert memory.columns == 4 * 16 * 8133 * 1627
    assert memory.columns < 0.86e9
    assert memory.means == 2 * 4 * 64 * 16 * (8133 + 16_266)
    assert memory.total < 1.1e9 < 4 * num_scores
    # Their number does not fit 31 bits at all densities, so offsets are int64.
    assert num_scores < 2**31 < 2 * num_scores


def test_it_takes_what_the_arithmetic_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from ns_sparseattn.kernels.selection import selection_memory

    num_tokens, density = 128 * 40, 0.25
    means = _means(1, 2, num_tokens // 128, num_tokens // 64, 32)
    limits = KeptLimits.of(None, 0.0, density, 2, num_tokens // 64)
    made: list[int] = []
    empty = torch.empty

    def counted(*sizes: object, **options: object) -> Tensor:
        tensor = empty(*sizes, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]
        made.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    counts, columns = _select(means, limits)
    monkeypatch.undo()
    memory = selection_memory(num_tokens, num_heads=2, head_size=32, density=density)
    assert columns.nbytes == memory.columns
    assert 2 * (means[0].nbytes + means[1].nbytes) == memory.means
    # Nothing that is made is as large as the scores of a head.
    assert max(made) <= max(memory.columns, memory.rows) < 4 * math.prod((40, 80)) * 2
    assert counts.unique().tolist() == [20]


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    # A sparse file: memory that is never touched takes no space.
    from ns_sparseattn.kernels import selection as kernels

    start, path = 2**31 + 5, tmp_path / "columns"
    with path.open("wb") as file:
        file.truncate(4 * (start + 8))
    columns = torch.from_file(str(path), shared=True, size=start + 8, dtype=torch.int32)
    q, k, counts = _means(1, 1, 1, 8, 32)
    kernels._emit_kernel[(1,)](
        q,
        k,
        counts.float().log(),
        torch.tensor([8], dtype=torch.int32),
        torch.tensor([-1e30]),
        torch.tensor([1e30]),
        torch.tensor([5], dtype=torch.int32),
        torch.tensor([5]),
        torch.tensor([start + 5]),
        columns,
        1,
        1,
        8,
        **kernels._constants(32, 1),
    )
    assert columns[start : start + 6].tolist() == [0, 1, 2, 3, 4, 0]
