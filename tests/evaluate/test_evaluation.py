# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from ns_sparseattn.evaluate import compare, evaluate
from ns_sparseattn.evaluate.types import Lens, PosedModel
from ns_sparseattn.geometry import camera_centers

from .conftest import SIZE, lens, make_model, moved, names_of, rigid, turn

TURN = turn((1, 2, -1), 50.0)
SHIFT = torch.tensor([3.0, -2.0, 9.0], dtype=torch.float64)


def elsewhere(poses: Tensor) -> Tensor:
    """The same cameras in a world of another frame and scale."""
    return moved(poses, scale=3.5, rotation=TURN, translation=SHIFT)


def trajectory(poses: Tensor, times: list[float]) -> PosedModel:
    model = make_model(poses, names=[f"{time:.4f}" for time in times])
    return dataclasses.replace(model, has_times=True, lenses=(None,) * len(poses))


def test_a_model_in_another_world_is_perfect(poses: Tensor) -> None:
    truth = make_model(poses, with_points=True)
    result = evaluate(make_model(elsewhere(poses)), truth)
    assert result.num_images == 6
    assert not result.missing
    assert not result.notes
    assert result.pairs.larger.auc[1] == pytest.approx(1.0, abs=1e-6)
    assert result.trajectory is not None
    assert result.trajectory.rmse == pytest.approx(0.0, abs=1e-9)
    assert result.trajectory.scale == pytest.approx(1 / 3.5)
    assert result.intrinsics is not None
    assert result.intrinsics.focal_max == result.intrinsics.center_max_px == 0.0
    assert result.pixels is not None
    assert result.pixels.percentile_90_px == pytest.approx(0.0, abs=1e-6)
    assert result.pixels.num_observations == 120


def test_a_model_against_itself_has_no_error_at_all(poses: Tensor) -> None:
    truth = make_model(poses)
    result = evaluate(truth, truth)
    assert result.pairs.larger.max_deg == 0.0
    assert set(result.pairs.larger.auc.values()) == {1.0}


def test_missing_images_count_and_are_named(poses: Tensor) -> None:
    result = evaluate(make_model(poses[:4]), make_model(poses))
    assert result.missing == ("004.jpg", "005.jpg")
    assert (result.num_images, result.pairs.num_pairs, result.pairs.num_missing) == (6, 6, 9)
    assert result.pairs.rotation.recall[30] == pytest.approx(6 / 15)


def test_images_without_a_reference_do_not_count(poses: Tensor) -> None:
    result = evaluate(make_model(poses), make_model(poses[:4]))
    assert (result.missing, result.extra) == ((), ("004.jpg", "005.jpg"))
    assert result.pairs.larger.auc[1] == 1.0


def test_photos_say_which_images_of_a_larger_reference_count(poses: Tensor) -> None:
    truth = make_model(poses, names=[f"dslr/{name}" for name in names_of(6)])
    photos = ["001.jpg", "003.jpg", "005.jpg", "other.jpg"]
    result = evaluate(make_model(poses[[1, 3]], names=["001.jpg", "003.jpg"]), truth, photos=photos)
    assert (result.num_images, result.missing) == (3, ("005.jpg",))
    assert "1 of 4 photos have no reference." in result.notes


def test_a_dense_trajectory_misses_no_photos_unless_they_are_listed(poses: Tensor) -> None:
    truth = trajectory(poses, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    names = ["rgb/0.101.png", "rgb/0.302.png", "rgb/0.499.png"]
    estimate = make_model(poses[[1, 3, 5]], names=names)
    result = evaluate(estimate, truth)
    assert (result.num_images, result.missing, result.extra) == (3, (), ())
    assert result.pairs.larger.auc[1] == pytest.approx(1.0)
    result = evaluate(estimate, truth, photos=[*names, "rgb/0.2.png"])
    assert result.missing == ("rgb/0.2.png",)


def test_a_trajectory_may_be_judged(poses: Tensor) -> None:
    names = [f"{0.1 * index:.1f}.png" for index in range(6)]
    estimate = trajectory(elsewhere(poses)[[0, 2, 3]], [0.001, 0.201, 0.301])
    result = evaluate(estimate, make_model(poses, names=names))
    assert result.missing == ("0.1.png", "0.4.png", "0.5.png")
    assert result.pairs.larger.max_deg == pytest.approx(0.0, abs=1e-5)
    assert result.trajectory is not None
    assert result.trajectory.rmse == pytest.approx(0.0, abs=1e-9)
    assert result.intrinsics is None
    assert any("No focal lengths" in note for note in result.notes)


def test_two_images_have_no_trajectory_error(poses: Tensor) -> None:
    result = evaluate(make_model(poses[:2]), make_model(poses[:2], with_points=True))
    assert result.trajectory is None
    assert result.pixels is None
    assert "No trajectory error: that needs 3 images in both models." in result.notes


def test_intrinsics_by_hand(poses: Tensor) -> None:
    truth = make_model(poses)
    result = evaluate(make_model(poses, camera=lens(550.0, center=3.0)), truth)
    assert result.intrinsics is not None
    assert result.intrinsics.focal_median == pytest.approx(0.1)
    assert result.intrinsics.center_median_px == pytest.approx(3.0)


def test_intrinsics_of_smaller_photos_are_compared_as_shares(poses: Tensor) -> None:
    half = lens(275.0, size=(SIZE[0] // 2, SIZE[1] // 2), center=3.0)
    result = evaluate(make_model(poses, camera=half), make_model(poses, with_points=True))
    assert result.intrinsics is not None
    assert result.intrinsics.focal_median == pytest.approx(0.1)
    # In pixels of the estimate's own, smaller photos.
    assert result.intrinsics.center_median_px == pytest.approx(3.0)


def test_cropped_photos_have_no_focal_error(poses: Tensor) -> None:
    result = evaluate(make_model(poses, camera=lens(size=(480, 480))), make_model(poses))
    assert result.intrinsics is None
    assert any("one shape" in note for note in result.notes)


def test_intrinsics_as_shares_of_the_size(poses: Tensor) -> None:
    width, height = SIZE
    share = Lens(
        model="PINHOLE",
        width=1.0,
        height=1.0,
        params=(500 / width, 500 / height, 0.5, 0.5),
        focal=(500 / width, 500 / height),
        center=(0.5, 0.5),
    )
    result = evaluate(make_model(poses, camera=lens(center=2.0)), make_model(poses, camera=share))
    assert result.intrinsics is not None
    assert result.intrinsics.focal_max == pytest.approx(0.0, abs=1e-12)
    assert result.intrinsics.center_max_px == pytest.approx(2.0)


def test_a_shifted_principal_point_moves_every_point_by_as_much(poses: Tensor) -> None:
    truth = make_model(poses, with_points=True)
    result = evaluate(make_model(elsewhere(poses), camera=lens(center=2.5)), truth)
    assert result.pixels is not None
    assert result.pixels.median_px == pytest.approx(2.5)
    assert result.pixels.percentile_90_px == pytest.approx(2.5)


def test_distortion_counts_in_pixels(poses: Tensor) -> None:
    bent = dataclasses.replace(lens(), model="OPENCV", params=(*lens().params, 0.1, 0.0, 0.0, 0.0))
    truth = make_model(poses, with_points=True)
    result = evaluate(make_model(poses, camera=bent), truth)
    assert result.pixels is not None
    # Points reach 70 pixels from the middle: 70 * 0.1 * (70 / 500)^2 there, less elsewhere.
    assert 0.01 < result.pixels.median_px < result.pixels.percentile_90_px < 0.3


def test_cameras_that_look_away_are_infinitely_far_off(poses: Tensor) -> None:
    estimate = poses.clone()
    for index in range(4):
        center = camera_centers(poses)[index]
        estimate[index] = rigid(turn((0, 1, 0), 180) @ poses[index, :, :3], center)
    result = evaluate(make_model(estimate), make_model(poses, with_points=True))
    assert result.pixels is not None
    assert result.pixels.num_behind == 80
    assert math.isinf(result.pixels.median_px)


def test_comparison_leaves_out_what_one_model_lacks(poses: Tensor) -> None:
    first = make_model(poses[:5], with_points=True, source="A")
    second = make_model(elsewhere(poses)[1:], names=names_of(6)[1:], camera=lens(505.0), source="B")
    result = compare(first, second)
    assert (result.first.num_images, result.first.num_points) == (5, 20)
    assert result.first.images_per_point == 5.0
    assert result.second.median_focal_px == 505.0
    assert result.difference.unmatched == ("000.jpg",)
    assert result.difference.extra == ("005.jpg",)
    assert not result.difference.missing
    assert result.difference.pairs.num_missing == 0
    assert result.difference.pairs.larger.max_deg == pytest.approx(0.0, abs=1e-5)
