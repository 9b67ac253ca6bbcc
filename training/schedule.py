# SPDX-License-Identifier: Apache-2.0
"""What changes while training goes on: learning rate, number of views, overlap, EMA."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long training takes in all, over all its pieces: steps or minutes."""

    steps: int | None = None
    """Number of steps; makes the result independent of the machine's speed."""
    minutes: float | None = None
    """Minutes of training on the machine, all pieces together."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("A budget needs either `steps` or `minutes`.")

    def progress(self, step: int, elapsed_s: float) -> float:
        """Return the share of the budget that is spent, 0 to 1."""
        if self.steps is not None:
            return min(step / self.steps, 1.0)
        assert self.minutes is not None
        return min(elapsed_s / (60.0 * self.minutes), 1.0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate and curriculum as functions of progress."""

    learning_rate: float = 1e-3
    """Largest learning rate."""
    final_share: float = 0.01
    """Share of it at the end of the cosine."""
    warmup_share: float = 0.03
    """Share of the budget over which it rises from zero."""
    ema_half_life: float = 500.0
    """Steps after which weights count half in the average; less at the beginning."""
    first_overlap: float = 0.6
    """Overlap of neighbouring views at the beginning."""
    last_overlap: float = 0.2
    """Overlap from `grown_at` on."""
    first_frames: tuple[int, int] = (2, 4)
    """Least and greatest number of views at the beginning."""
    last_frames: tuple[int, int] = (2, 10)
    """The same from `grown_at` on."""
    grown_at: float = 0.5
    """Progress at which overlap and number of views have reached their end."""
    late_from: float = 0.3
    """Progress from which new photos have the late sizes of the pool, if it has any."""

    def rate(self, progress: float) -> float:
        """Return the learning rate: linear warm-up, then a cosine."""
        if progress < self.warmup_share:
            return self.learning_rate * progress / self.warmup_share
        along = (progress - self.warmup_share) / (1.0 - self.warmup_share)
        cosine = 0.5 * (1.0 + math.cos(math.pi * along))
        return self.learning_rate * (self.final_share + (1.0 - self.final_share) * cosine)

    def overlap(self, progress: float) -> float:
        """Return the overlap that a view should have with an earlier one."""
        return self._grow(progress, self.first_overlap, self.last_overlap)

    def frames(self, progress: float) -> tuple[int, int]:
        """Return the least and the greatest number of views of a scene."""
        least, most = (
            round(self._grow(progress, first, last))
            for first, last in zip(self.first_frames, self.last_frames, strict=True)
        )
        return least, most

    def ema_decay(self, step: int) -> float:
        """Return the weight of the average's past; small at first, so that it forgets the start."""
        return min(0.5 ** (1.0 / self.ema_half_life), (1.0 + step) / (10.0 + step))

    def _grow(self, progress: float, first: float, last: float) -> float:
        along = min(progress / self.grown_at, 1.0)
        return first + (last - first) * along
