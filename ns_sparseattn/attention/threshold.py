# SPDX-License-Identifier: Apache-2.0
"""Keep the largest scores of each row without sorting: bisect on the score at which to stop.

Axes: ``R`` rows, ``C`` columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST_STEPS = 14
"""Bisections before the rows that need no more are set aside. With 2048 rows of 256 scores and 335
of 1563, fewer than 14 took longer on a CPU, and more gained nothing."""
_NEXT_STEPS = 4
"""Bisections between later looks at which rows need more."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How much of each row is enough: a mass and `least` scores, but never more than `most`."""

    least: Tensor  # [R]
    """Number of scores, in their dtype."""
    most: Tensor  # [R]
    """Number of scores, in their dtype; from `least` up to those of the row."""
    mass: Tensor | None = None  # [R]
    """Sum of the weights to reach; none if only the numbers count."""

    def is_met(self, counts: Tensor, masses: Tensor) -> Tensor:
        """Say for each row whether so many scores of such weight are enough, ``[R]`` booleans."""
        is_enough = counts >= self.least
        if self.mass is not None:
            is_enough &= masses >= self.mass
        return is_enough | (counts >= self.most)

    def rows(self, index: Tensor) -> Wanted:
        """Return some of the rows."""
        mass = None if self.mass is None else self.mass[index]
        return Wanted(least=self.least[index], most=self.most[index], mass=mass)


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """A threshold for each row, and the number and weight of the scores that reach it."""

    values: Tensor  # [R]
    counts: Tensor  # [R]
    masses: Tensor  # [R]

    def rows(self, index: Tensor) -> _Bound:
        """Return some of the rows."""
        return _Bound(
            values=self.values[index], counts=self.counts[index], masses=self.masses[index]
        )

    def set_rows(self, index: Tensor, to: _Bound) -> None:
        """Replace some of the rows."""
        self.values[index] = to.values
        self.counts[index] = to.counts
        self.masses[index] = to.masses

    def replaced(self, where: Tensor, by: _Bound) -> _Bound:
        """Return the other bound where that is said, ``[R]`` booleans."""
        return _Bound(
            values=torch.where(where, by.values, self.values),
            counts=torch.where(where, by.counts, self.counts),
            masses=torch.where(where, by.masses, self.masses),
        )


def keep_largest(
    scores: Tensor,  # [R, C]
    weights: Tensor | None,  # [R, C]
    wanted: Wanted,
) -> tuple[Tensor, Tensor]:
    """Mark the fewest of each row's largest scores that are enough.

    Searches the largest threshold at which the scores that reach it are enough. Of several scores
    that equal this threshold, no more than needed are kept, those of the first columns.

    Args:
        scores: ``[R, C]``, finite, at least one in each row.
        weights: ``[R, C]``, not negative; none if no mass is wanted.
        wanted: What is enough. All scores of a row together always are.

    Returns:
        ``[R, C]`` booleans, and how many are true in each row, ``[R]`` int64.
    """
    enough, too_few = _search(scores, weights, wanted)
    keep = scores >= enough.values[:, None]
    num_tied = enough.counts - too_few.counts
    num_needed = _num_ties_needed(enough, too_few, wanted)
    surplus = (num_needed < num_tied).nonzero()[:, 0]
    if len(surplus):
        is_tied = keep[surplus] & (scores[surplus] < too_few.values[surplus, None])
        keep[surplus] &= ~is_tied | (is_tied.cumsum(-1) <= num_needed[surplus, None])
    return keep, (too_few.counts + num_needed).long()


def _num_ties_needed(enough: _Bound, too_few: _Bound, wanted: Wanted) -> Tensor:
    """Return how many of the scores that equal the threshold each row keeps, ``[R]``."""
    num_tied = enough.counts - too_few.counts
    num_needed = wanted.least - too_few.counts
    if wanted.mass is not None:
        weight = (enough.masses - too_few.masses) / num_tied
        # No weight may be left by underflow, and rounding may leave mass missing.
        missing = (wanted.mass - too_few.masses) / weight.clamp_min(torch.finfo(weight.dtype).tiny)
        num_needed = torch.maximum(num_needed, missing.ceil())
    num_needed = torch.minimum(num_needed, wanted.most - too_few.counts)
    return torch.minimum(num_needed.clamp_min(1), num_tied)


def _search(scores: Tensor, weights: Tensor | None, wanted: Wanted) -> tuple[_Bound, _Bound]:
    """Return a threshold that is enough and a higher one that is not, with ties at most between."""
    enough, too_few = _all_and_none(scores, weights)
    rows = torch.arange(len(scores), device=scores.device)
    low, high, num_steps = enough, too_few, _FIRST_STEPS
    while True:
        low, high = _bisect(scores, weights, wanted, low, high, num_steps)
        enough.set_rows(rows, low)
        too_few.set_rows(rows, high)
        is_open = (low.counts - high.counts > 1).nonzero()[:, 0]
        if len(is_open):
            low, high = _tighten(scores[is_open], low.rows(is_open), high.rows(is_open))
            # Bounds next to each other have nothing but equal scores between them.
            has_room = _next(low.values) < high.values
            enough.set_rows(rows[is_open], low)
            too_few.set_rows(rows[is_open], high)
            low, high, is_open = low.rows(has_room), high.rows(has_room), is_open[has_room]
        if not len(is_open):
            return enough, too_few
        rows, scores, wanted = rows[is_open], scores[is_open], wanted.rows(is_open)
        weights = None if weights is None else weights[is_open]
        num_steps = _NEXT_STEPS


def _all_and_none(scores: Tensor, weights: Tensor | None) -> tuple[_Bound, _Bound]:
    """Return the highest threshold that all scores reach and the lowest that none does."""
    lowest, zeros = scores.amin(-1), torch.zeros_like(scores[:, 0])
    everything = _Bound(
        values=lowest,
        counts=torch.full_like(lowest, scores.shape[1]),
        masses=zeros if weights is None else weights.sum(-1),
    )
    nothing = _Bound(values=_next(scores.amax(-1)), counts=zeros, masses=zeros.clone())
    return everything, nothing


def _bisect(
    scores: Tensor,
    weights: Tensor | None,
    wanted: Wanted,
    enough: _Bound,
    too_few: _Bound,
    num_steps: int,
) -> tuple[_Bound, _Bound]:
    """Halve the distance of two thresholds a number of times."""
    # Ones and zeros instead of booleans, whose sums are slow on a CPU.
    reaches = torch.empty_like(scores)
    for _ in range(num_steps):
        # Half of each, because their sum may overflow.
        values = 0.5 * enough.values + 0.5 * too_few.values
        torch.ge(scores, values[:, None], out=reaches)
        counts = reaches.sum(-1)
        masses = counts if weights is None else reaches.mul_(weights).sum(-1)
        middle = _Bound(values=values, counts=counts, masses=masses)
        is_met = wanted.is_met(counts, masses)
        enough = enough.replaced(is_met, middle)
        too_few = middle.replaced(is_met, too_few)
    return enough, too_few


def _tighten(scores: Tensor, enough: _Bound, too_few: _Bound) -> tuple[_Bound, _Bound]:
    """Move two thresholds towards each other as far as no score is passed."""
    lowest = scores.masked_fill(scores < enough.values[:, None], float("inf")).amin(-1)
    highest = scores.masked_fill(scores >= too_few.values[:, None], float("-inf")).amax(-1)
    return (
        _Bound(values=lowest, counts=enough.counts, masses=enough.masses),
        _Bound(values=_next(highest), counts=too_few.counts, masses=too_few.masses),
    )


def _next(values: Tensor) -> Tensor:
    """Return the next larger numbers of the dtype."""
    return torch.nextafter(values, torch.full_like(values, float("inf")))
