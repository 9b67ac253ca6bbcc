# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ns_sparseattn.refine.options import AuditOptions
from ns_sparseattn.refine.two_view import (
    SceneRays,
    angle_deg,
    check_pair,
    rotation_only_error,
    sampson_error,
)
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.disturb import rotation_about

from .conftest import MakeMatches

X_AXIS = np.array([1.0, 0.0, 0.0])
Y_AXIS = np.array([0.0, 1.0, 0.0])


def test_sampson_error_of_a_sideways_shift_is_half_the_vertical_distance_squared_sum() -> None:
    # Epipolar lines are horizontal in both views, so the shift dy is split between them: dy/sqrt 2.
    first = np.array([[0.1, 0.2], [0.3, -0.1]])
    shift: NDArray[np.float64] = np.array([[0.05, 0.0], [0.0, 0.02]])
    second: NDArray[np.float64] = np.add(first, shift)
    error = sampson_error(first, second, np.eye(3), np.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(error, [0.0, 0.02 / np.sqrt(2.0)], atol=1e-15)


@pytest.mark.parametrize("degrees", [1e-6, 3.0, 90.0, 180.0])
def test_angle_between_rotations(degrees: float) -> None:
    assert angle_deg(rotation_about(Y_AXIS, degrees), np.eye(3)) == pytest.approx(degrees)


def test_a_pure_rotation_is_explained_and_parallax_is_not() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(-1.0, 1.0, (40, 3)) + np.array([0.0, 0.0, 4.0])
    turned = points @ rotation_about(Y_AXIS, 10.0).T
    moved = turned + np.array([0.5, 0.0, 0.0])
    on_first, on_turned, on_moved = (p[:, :2] / p[:, 2:] for p in (points, turned, moved))
    assert rotation_only_error(on_first, on_turned, 500.0) < 1e-9
    # Depths from 3 to 5 at a baseline of 0.5 shift rays by 0.1 to 0.17, and their mean is absorbed.
    assert rotation_only_error(on_first, on_moved, 500.0) > 5.0


@pytest.mark.parametrize("degrees", [0.0, 4.0, 12.0])
def test_the_rotation_error_of_a_pair_is_measured(
    truth: Scene, make_matches: MakeMatches, degrees: float
) -> None:
    pair = next(p for p in make_matches(truth) if (p.first, p.second) == (1, 4))
    rays = SceneRays.of(truth)
    # A nod moves matches across their epipolar lines; a turn would move them along.
    rays.cam_from_world[4] = rotation_about(X_AXIS, degrees) @ rays.cam_from_world[4]
    check = check_pair(pair, rays, AuditOptions())
    assert check.rotation_error_deg == pytest.approx(degrees, abs=0.5)
    assert (check.epipolar_error_px < 1.0) == (degrees == 0.0)
    assert check.num_matches == 60
