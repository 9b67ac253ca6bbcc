# SPDX-License-Identifier: Apache-2.0
"""The search for the largest scores of a row, against sorting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ns_sparseattn.attention.threshold import Wanted, keep_largest

DTYPES = [torch.float32, torch.float64]


def _sorted_reference(scores: Tensor, weights: Tensor | None, wanted: Wanted) -> Tensor:
    """The same by sorting, in float64: the fewest leading scores that are enough."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    numbers = torch.arange(1, scores.shape[1] + 1)
    needed = wanted.least.long()
    if weights is not None and wanted.mass is not None:
        reached = weights.double().gather(1, order).cumsum(-1)
        needed = needed.maximum((reached < wanted.mass.double()[:, None]).sum(-1) + 1)
    needed = needed.minimum(wanted.most.long())
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, numbers <= needed[:, None])


def _rows(number: float, scores: Tensor) -> Tensor:
    return torch.full((len(scores),), number, dtype=scores.dtype)


def _make_scores(kind: str, num_columns: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(num_columns)
    scores = torch.randn(40, num_columns, dtype=dtype, generator=generator)
    if kind == "clustered":
        return scores.round() * 2 + 0.01 * scores
    if kind == "ties":
        return (2 * scores).round()
    if kind == "constant":
        return torch.full_like(scores, -1.7)
    if kind == "peaked":
        return 1e4 * scores
    if kind == "wide":
        # From the smallest normal numbers to the largest, of both signs.
        return scores.sign() * 10 ** (12 * scores).clamp(-37, 37)
    if kind == "one-above":
        return torch.zeros_like(scores).index_fill(1, torch.tensor([num_columns // 2]), 50.0)
    assert kind == "random"
    return scores


KINDS = ["random", "clustered", "ties", "constant", "peaked", "wide", "one-above"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_columns", [1, 2, 7, 300])
def test_numbers_alone_keep_exactly_those_of_the_sort(
    kind: str, dtype: torch.dtype, num_columns: int
) -> None:
    scores = _make_scores(kind, num_columns, dtype)
    for number in {1, num_columns // 3 + 1, num_columns}:
        wanted = Wanted(least=_rows(number, scores), most=_rows(number, scores))
        keep, counts = keep_largest(scores, None, wanted)
        assert torch.equal(keep, _sorted_reference(scores, None, wanted))
        assert counts.unique().tolist() == [number]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_columns", [1, 2, 7, 300])
def test_mass_and_bounds_keep_those_of_the_sort(kind: str, num_columns: int) -> None:
    scores = _make_scores(kind, num_columns, torch.float64)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    for share in (0.05, 0.5, 0.9, 0.999):
        for least, most in (
            (1, num_columns),
            (num_columns // 2 + 1, num_columns),
            (1, num_columns // 4 + 1),
        ):
            wanted = Wanted(
                least=_rows(least, scores),
                most=_rows(most, scores),
                mass=share * weights.sum(-1),
            )
            keep, counts = keep_largest(scores, weights, wanted)
            # Sums in another order round otherwise: only for equal weights that can matter.
            assert torch.equal(keep, _sorted_reference(scores, weights, wanted))
            assert torch.equal(counts, keep.sum(-1))


def test_rows_may_want_different_things() -> None:
    scores = _make_scores("random", 50, torch.float32)
    weights = scores.exp()
    least = torch.arange(40.0) // 4 + 1
    wanted = Wanted(
        least=least,
        most=least + torch.arange(40) % 7,
        mass=torch.linspace(0.01, 0.99, 40) * weights.sum(-1),
    )
    keep, _ = keep_largest(scores, weights, wanted)
    assert torch.equal(keep, _sorted_reference(scores, weights, wanted))


def test_of_equal_scores_the_first_are_kept() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 3.0, 1.0, 1.0, 0.0]])
    wanted = Wanted(least=_rows(3, scores), most=_rows(4, scores))
    keep, counts = keep_largest(scores, None, wanted)
    assert keep[0].nonzero().flatten().tolist() == [1, 2, 3]
    assert counts.tolist() == [3]


def test_weights_that_underflow_leave_the_order_to_the_scores() -> None:
    # All weights but the first are zero in float32; the scores still say which come next.
    scores = -200.0 * torch.arange(20.0)[None]
    weights = scores.exp()
    wanted = Wanted(least=_rows(5, scores), most=_rows(20, scores), mass=0.999 * weights.sum(-1))
    keep, _ = keep_largest(scores, weights, wanted)
    assert keep[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
