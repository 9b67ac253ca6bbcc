# SPDX-License-Identifier: Apache-2.0
"""Random numbers by seed, name and index."""

from __future__ import annotations

import torch

from training.draws import Draws


def test_an_item_draws_the_same_in_any_batch() -> None:
    many, one = Draws(7, "x", torch.arange(100)), Draws(7, "x", torch.tensor([42]))
    for _ in range(3):
        torch.testing.assert_close(many.uniform(4, 2)[42:43], one.uniform(4, 2), rtol=0, atol=0)


def test_seeds_names_and_indices_give_other_numbers() -> None:
    numbers = torch.cat(
        [
            Draws(seed, name, torch.arange(50)).uniform(40).flatten()
            for seed in (0, 1, 2**40)
            for name in ("a", "b")
        ]
    )
    # 12,000 of 2^24 possible values: about four coincidences are to be expected.
    assert len(numbers.unique()) > len(numbers) - 20


def test_numbers_are_spread_evenly() -> None:
    numbers = Draws(3, "even", torch.arange(2000)).uniform(50)
    assert float(numbers.min()) >= 0.0
    assert float(numbers.max()) < 1.0
    counts = torch.histc(numbers, bins=20, min=0.0, max=1.0)
    # Twenty bins of 5,000 expected: a deviation of five standard deviations is 345.
    assert float((counts - 5000).abs().max()) < 345
    # Neighbours in index and in count have nothing to do with each other.
    for a, b in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.02


def test_normal_numbers_and_integers() -> None:
    draws = Draws(5, "kinds", torch.arange(5000))
    normal = draws.normal(4)
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1.0) < 0.03
    assert draws.integers(8, high=3).unique().tolist() == [0, 1, 2]
    assert abs(float(draws.chance(0.2, 8).float().mean()) - 0.2) < 0.02
    spread = draws.log_uniform(4, low=0.01, high=1.0)
    assert abs(float((spread < 0.1).float().mean()) - 0.5) < 0.03
