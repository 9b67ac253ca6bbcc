# SPDX-License-Identifier: Apache-2.0
"""The same figures from evo, the field's tool for trajectories, which shares no code with ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evo.core import metrics
from evo.core.trajectory import PosePath3D

from ns_sparseattn.evaluate.alignment import trajectory_error, umeyama
from ns_sparseattn.evaluate.pairs import pair_errors
from ns_sparseattn.geometry import camera_centers, invert_rigid

from .conftest import ring


def to_evo(poses: torch.Tensor) -> PosePath3D:
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64).expand(len(poses), 1, 4)
    matrices = torch.cat([invert_rigid(poses), last], dim=1)
    return PosePath3D(poses_se3=list(matrices.numpy()))


@pytest.fixture(params=[0, 1, 2])
def pair(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate and reference, twelve cameras each, unlike in scale and frame."""
    truth, other = ring(12), ring(12, seed=request.param + 10)
    return torch.cat([other[..., :3], 0.3 * other[..., 3:] + 0.05], dim=-1), truth


def test_trajectory_error(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    estimate, truth = pair
    path, reference = to_evo(estimate), to_evo(truth)
    path.align(reference, correct_scale=True)
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data((reference, path))
    error, _ = trajectory_error(camera_centers(estimate), camera_centers(truth))
    expected = ape.get_all_statistics()
    assert error.rmse > 0.01
    for name in ("rmse", "mean", "median", "max"):
        assert getattr(error, name) == pytest.approx(expected[name], rel=1e-9)


def test_similarity(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    estimate, truth = pair
    rotation, translation, scale = to_evo(estimate).align(to_evo(truth), correct_scale=True)
    found = umeyama(camera_centers(estimate), camera_centers(truth))
    assert found.scale == pytest.approx(scale)
    np.testing.assert_allclose(found.rotation.numpy(), rotation, atol=1e-9)
    np.testing.assert_allclose(found.translation.numpy(), translation, atol=1e-9)


def test_relative_rotations(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    estimate, truth = pair
    for step in (1, 3):
        rpe = metrics.RPE(
            metrics.PoseRelation.rotation_angle_deg, step, metrics.Unit.frames, all_pairs=True
        )
        rpe.process_data((to_evo(truth), to_evo(estimate)))
        errors = pair_errors(estimate, truth).rotation_deg
        num_images = len(truth)
        pairs = [(i, j) for i in range(num_images) for j in range(i + 1, num_images)]
        ours = [float(errors[n]) for n, (i, j) in enumerate(pairs) if j - i == step]
        assert np.max(ours) > 1.0
        np.testing.assert_allclose(ours, rpe.error, atol=1e-6)
