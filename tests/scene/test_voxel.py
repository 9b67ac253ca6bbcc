# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from ns_sparseattn.scene.voxel import thin_points


def random_points(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=generator, dtype=torch.float64)


def thin(xyz: torch.Tensor, max_points: int, length=None, error=None) -> torch.Tensor:
    count = xyz.shape[0]
    return thin_points(
        xyz,
        max_points=max_points,
        track_length=torch.full((count,), 2) if length is None else length,
        error=torch.zeros(count, dtype=torch.float64) if error is None else error,
    )


def test_few_points_all_stay() -> None:
    assert thin(random_points(10), 10).tolist() == list(range(10))


@pytest.mark.parametrize("max_points", [1, 2, 5, 100, 1000])
def test_cap_is_kept_and_nearly_reached(max_points: int) -> None:
    kept = thin(random_points(5000), max_points)
    assert kept.shape[0] <= max_points
    assert kept.shape[0] >= 0.85 * max_points
    assert bool((kept.diff() > 0).all())


def test_longer_tracks_then_lower_errors_then_the_first_win() -> None:
    xyz = torch.zeros(5, 3, dtype=torch.float64)
    length = torch.tensor([2, 3, 3, 3, 2])
    error = torch.tensor([0.0, 2.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert thin(xyz, 1, length, error).tolist() == [2]


def test_far_outliers_change_nothing() -> None:
    xyz = random_points(5000)
    outliers = torch.tensor([[1e12, 0.0, 0.0], [0.0, -1e12, 0.0]], dtype=torch.float64)
    kept = thin(torch.cat([xyz, outliers]), 500)
    near = int((kept < 5000).sum())
    assert near >= 400


def test_dense_and_sparse_parts_end_equally_dense() -> None:
    dense, sparse = random_points(9000), random_points(1000, seed=1)
    dense[:, 2], sparse[:, 2] = 0.0, 0.0
    sparse[:, 0] += 2.0
    kept = thin(torch.cat([dense, sparse]), 500)
    num_dense = int((kept < 9000).sum())
    assert num_dense == pytest.approx(kept.shape[0] / 2, rel=0.25)
