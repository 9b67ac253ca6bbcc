# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ns_sparseattn.evaluate.pairs import (
    THRESHOLDS_DEG,
    auc,
    auc_vggt,
    pair_errors,
    summarise,
)
from ns_sparseattn.geometry import camera_centers

from .conftest import moved, rigid, ring, turn

EYE = torch.eye(3, dtype=torch.float64)


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_the_reference_against_itself_is_exact(poses: Tensor) -> None:
    errors = pair_errors(poses, poses)
    assert len(errors) == 15
    assert float(errors.larger_deg.max()) == 0.0
    curve = summarise(errors.larger_deg, errors.vggt_larger_deg, num_missing=0)
    assert set(curve.auc.values()) == set(curve.auc_vggt.values()) == {1.0}
    assert curve.median_deg == curve.max_deg == 0.0


@settings(max_examples=20, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    angle=st.floats(0, 360),
    shift=st.floats(-1e3, 1e3),
    seed=st.integers(0, 100),
)
def test_another_world_frame_changes_nothing(
    scale: float, angle: float, shift: float, seed: int
) -> None:
    truth, estimate = ring(), ring(seed=seed + 1)
    rotation = turn((1, 2, 3), angle)
    elsewhere = moved(
        estimate, scale=scale, rotation=rotation, translation=values(shift, 0, -shift)
    )
    expected, actual = pair_errors(estimate, truth), pair_errors(elsewhere, truth)
    for name in ("rotation_deg", "direction_deg", "vggt_direction_deg"):
        torch.testing.assert_close(
            getattr(actual, name), getattr(expected, name), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("angle", [1e-7, 1e-3, 1.0, 90.0, 179.9, 180.0])
def test_a_turned_camera_is_off_by_the_angle_in_all_of_its_pairs(
    poses: Tensor, angle: float
) -> None:
    estimate = poses.clone()
    # About its own centre: rotation errors of its pairs, none of the others'.
    center = camera_centers(poses)[2]
    estimate[2] = rigid(turn((3, -1, 2), angle) @ poses[2, :, :3], center)
    errors = pair_errors(estimate, poses)
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    for (first, second), error in zip(pairs, errors.rotation_deg.tolist(), strict=True):
        expected = angle if 2 in (first, second) else 0.0
        # The arc sine is steep at its end.
        assert error == pytest.approx(expected, abs=1e-5 if angle == 180 else 1e-10)


def test_directions_are_those_of_the_second_camera() -> None:
    # Two cameras without rotation, one right of the other; the second is estimated in front.
    truth = torch.stack([rigid(EYE, (0, 0, 0)), rigid(EYE, (1, 0, 0))])
    estimate = torch.stack([rigid(EYE, (0, 0, 0)), rigid(EYE, (0, 0, 2))])
    assert pair_errors(estimate, truth).direction_deg.tolist() == pytest.approx([90.0])
    # With the second turned by 30 degrees about y, the direction to the first turns with it, but
    # the direction from the first does not: only VGGT's definition sees no error.
    turned = torch.stack([rigid(EYE, (0, 0, 0)), rigid(turn((0, 1, 0), 30), (1, 0, 0))])
    errors = pair_errors(turned, truth)
    assert errors.direction_deg.tolist() == pytest.approx([30.0])
    assert errors.vggt_direction_deg.tolist() == pytest.approx([0.0], abs=1e-9)


def test_an_opposite_direction_is_off_by_180_degrees_but_right_in_vggts_definition() -> None:
    truth = torch.stack([rigid(EYE, (0, 0, 0)), rigid(EYE, (1, 0, 0))])
    estimate = torch.stack([rigid(EYE, (0, 0, 0)), rigid(EYE, (-1, 0, 0))])
    errors = pair_errors(estimate, truth)
    assert errors.direction_deg.tolist() == pytest.approx([180.0])
    assert errors.vggt_direction_deg.tolist() == pytest.approx([0.0], abs=1e-9)


def test_reference_cameras_at_one_place_are_judged_by_rotation_alone() -> None:
    # A world origin far off, where a baseline of nothing is rounded to something.
    place = (1e6, 2e6, 3e6)
    truth = torch.stack([rigid(turn((0, 1, 0), 18.0 * i), place) for i in range(4)])
    errors = pair_errors(truth, truth)
    assert bool(errors.direction_deg.isnan().all())
    assert float(errors.larger_deg.max()) == 0.0


def test_an_estimate_at_one_place_fails_where_the_truth_has_a_baseline(poses: Tensor) -> None:
    estimate = torch.cat([poses[..., :3], torch.zeros(6, 3, 1, dtype=torch.float64)], dim=-1)
    errors = pair_errors(estimate, poses)
    assert float(errors.rotation_deg.max()) == 0.0
    assert set(errors.direction_deg.tolist()) == {180.0}
    assert set(errors.vggt_direction_deg.tolist()) == {90.0}


def test_missing_images_fail_with_every_pair_of_theirs(poses: Tensor) -> None:
    errors = pair_errors(poses[:4], poses[:4], num_missing_images=2)
    # 15 pairs of six images, six of them between four that are there.
    assert (len(errors), errors.num_missing) == (6, 9)
    curve = summarise(errors.larger_deg, errors.vggt_larger_deg, num_missing=9)
    assert set(curve.recall.values()) == {6 / 15}
    assert curve.auc[30] == pytest.approx(6 / 15)
    assert curve.auc_vggt[30] == pytest.approx(6 / 15)
    assert curve.median_deg == 0.0


@pytest.mark.parametrize(
    ("errors", "limit", "expected"),
    [
        # One error: a triangle up to it, then a rectangle.
        ((2.0,), 10, (2 / 2 + 8) / 10),
        ((2.0, 4.0), 10, (0.5 * 2 / 2 + (0.5 + 1) / 2 * 2 + 6) / 10),
        ((2.0, 40.0), 10, (0.5 * 2 / 2 + 0.5 * 8) / 10),
        ((10.0,), 10, 0.0),
        ((0.0, 0.0), 1, 1.0),
    ],
)
def test_area_by_hand(errors: tuple[float, ...], limit: int, expected: float) -> None:
    assert auc(values(*errors), limit) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("errors", "limit", "expected"),
    [
        # Shares below 1, 2, 3 degrees, the last with 3 itself.
        ((0.5,), 3, 1.0),
        ((1.0,), 3, 2 / 3),
        ((3.0,), 3, 1 / 3),
        ((0.5, 2.5, 3.0, 90.0), 3, (1 + 1 + 3) / 4 / 3),
        ((1.0, 0.0), 1, 1.0),
    ],
)
def test_vggts_area_by_hand(errors: tuple[float, ...], limit: int, expected: float) -> None:
    assert auc_vggt(values(*errors), limit) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 180), min_size=1, max_size=40))
def test_areas_against_numerical_integration(errors: list[float]) -> None:
    ordered = np.sort(errors)
    share = np.arange(1, len(errors) + 1) / len(errors)
    knots, heights = np.concatenate([[0.0], ordered]), np.concatenate([[0.0], share])
    for limit in THRESHOLDS_DEG:
        at = np.linspace(0, limit, 20_001)
        # Steps of height at equal knots: the last one counts, and beyond the last error below the
        # limit the curve is flat.
        is_below = knots < limit
        curve = np.interp(at, knots[is_below], heights[is_below])
        area = float((curve[1:] + curve[:-1]).mean()) / 2
        assert auc(values(*errors), limit) == pytest.approx(area, abs=2e-3)
        counts, _ = np.histogram(errors, bins=np.arange(limit + 1))
        assert auc_vggt(values(*errors), limit) == pytest.approx(
            float(np.cumsum(counts / len(errors)).mean())
        )


def test_without_pairs_there_are_no_figures() -> None:
    one = ring(1)
    errors = pair_errors(one, one)
    curve = summarise(errors.larger_deg, errors.vggt_larger_deg, num_missing=errors.num_missing)
    assert math.isnan(curve.auc[5])
    assert math.isnan(curve.auc_vggt[5])
    assert math.isnan(curve.recall[5])
    assert math.isnan(curve.median_deg)
