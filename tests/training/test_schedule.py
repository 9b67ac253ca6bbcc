# SPDX-License-Identifier: Apache-2.0
"""Budgets, learning rate and curriculum."""

from __future__ import annotations

import pytest

from training.schedule import Budget, Schedule


def test_a_budget_counts_steps_or_minutes() -> None:
    assert Budget(steps=200).progress(50, 1e9) == 0.25
    assert Budget(minutes=10).progress(10**9, 150.0) == 0.25
    assert Budget(minutes=10).progress(0, 700.0) == 1.0
    for wrong in ({}, {"steps": 1, "minutes": 1.0}):
        with pytest.raises(ValueError, match="either `steps` or `minutes`"):
            Budget(**wrong)


def test_the_learning_rate_rises_and_falls() -> None:
    schedule = Schedule(learning_rate=1e-3, warmup_share=0.1, final_share=0.01)
    rates = [schedule.rate(i / 1000) for i in range(1001)]
    assert rates[0] == 0.0
    assert max(rates) == rates[100] == pytest.approx(1e-3)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[1000] == pytest.approx(1e-5)


def test_the_curriculum_grows_and_stays() -> None:
    schedule = Schedule(
        first_frames=(2, 4), last_frames=(2, 10), first_overlap=0.6, last_overlap=0.2, grown_at=0.5
    )
    assert schedule.frames(0.0) == (2, 4)
    assert schedule.frames(0.25) == (2, 7)
    assert schedule.frames(0.5) == schedule.frames(1.0) == (2, 10)
    assert schedule.overlap(0.25) == pytest.approx(0.4)
    assert schedule.overlap(0.9) == pytest.approx(0.2)


def test_the_average_forgets_the_start_and_then_halves_as_told() -> None:
    schedule = Schedule(ema_half_life=100)
    assert schedule.ema_decay(0) == 0.1
    assert schedule.ema_decay(10**6) ** 100 == pytest.approx(0.5)
