# SPDX-License-Identifier: Apache-2.0
"""What is known holds in the prediction, and the rest is brought into its frame and scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ns_sparseattn import frames
from ns_sparseattn.conditioning import Known, KnownOptions, apply_known, load_known
from ns_sparseattn.conditioning.apply import align
from ns_sparseattn.conditioning.depth_scale import find_depth_scale
from ns_sparseattn.geometry import camera_centers, invert_rigid, quaternion_to_rotation
from ns_sparseattn.options import SceneOptions
from ns_sparseattn.prediction import Prediction

from .conftest import Room, true_intrinsics

NOTHING = (None,) * 5


def known(room: Room, **values: object) -> Known:
    del room
    fields = {"intrinsics": NOTHING, "cam_from_world": NOTHING, "depth": NOTHING, **values}
    return Known(**fields)  # type: ignore[arg-type]


def moved(truth: Prediction, scale: float) -> Prediction:
    """The same scene in another world, ``scale`` times as large."""
    rotation = quaternion_to_rotation(torch.tensor([0.3, -0.5, 0.7, 0.2]))
    centers = scale * camera_centers(truth.cam_from_world) @ rotation.T + torch.tensor([5.0, -2, 1])
    rotations = truth.cam_from_world[..., :3] @ rotation.T
    poses = torch.cat([rotations, -(rotations @ centers.unsqueeze(-1))], dim=-1)
    return replace(truth, cam_from_world=poses, depth=truth.depth * scale)


def apply(room: Room, prediction: Prediction, what: Known) -> Prediction:
    return apply_known(prediction, what, room.photos, SceneOptions())


@pytest.mark.parametrize("posed", [(0, 1, 2, 3, 4), (1, 3), (0, 2, 4)])
def test_the_world_is_that_of_the_poses(room: Room, posed: tuple[int, ...]) -> None:
    poses = tuple(room.truth.cam_from_world[i].double() if i in posed else None for i in range(5))
    result = apply(room, moved(room.truth, 3.7), known(room, cam_from_world=poses))
    assert torch.allclose(result.cam_from_world, room.truth.cam_from_world, atol=1e-4)
    assert torch.allclose(result.depth, room.truth.depth, rtol=1e-4)
    for index in posed:
        assert torch.equal(result.cam_from_world[index], room.truth.cam_from_world[index])
    assert result.scale == "relative"
    assert not result.notes


def test_one_pose_tells_no_scale(room: Room) -> None:
    poses = (room.truth.cam_from_world[0].double(), None, None, None, None)
    result = apply(room, moved(room.truth, 2.0), known(room, cam_from_world=poses))
    assert torch.equal(result.cam_from_world[0], room.truth.cam_from_world[0])
    assert torch.allclose(result.depth, 2 * room.truth.depth)
    assert "do not tell the scale" in result.notes[0]


def test_one_metric_pose_takes_its_scale_from_depth(room: Room) -> None:
    poses = (room.truth.cam_from_world[0].double(), None, None, None, None)
    depth = (None, room.truth.depth[1], None, None, None)
    what = known(room, cam_from_world=poses, depth=depth, has_metric_poses=True)
    result = apply(room, moved(room.truth, 0.2), what)
    assert torch.allclose(result.cam_from_world, room.truth.cam_from_world, atol=1e-3)
    assert torch.allclose(result.depth, room.truth.depth, rtol=1e-3)
    assert not result.notes


def test_two_cameras_on_a_line_are_enough() -> None:
    predicted = torch.eye(3, 4, dtype=torch.float64).repeat(2, 1, 1)
    predicted[1, 0, 3] = -1.0
    turn = quaternion_to_rotation(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    centers = 2.5 * camera_centers(predicted) @ turn.T + 1.0
    rotations = predicted[..., :3] @ turn.T
    target = torch.cat([rotations, -(rotations @ centers.unsqueeze(-1))], dim=-1)
    aligned = align(predicted, target)
    assert aligned.scale == pytest.approx(2.5)
    assert torch.allclose(aligned.move(predicted), target)


def test_poses_that_contradict_the_network_are_noted(room: Room) -> None:
    order = [2, 0, 4, 1, 3]
    shuffled = room.truth.cam_from_world[order].double()
    centers = camera_centers(shuffled)
    own = invert_rigid(room.truth.cam_from_world.double())[..., :3]
    poses = invert_rigid(torch.cat([own, centers.unsqueeze(-1)], dim=-1))
    result = apply(room, room.truth, known(room, cam_from_world=tuple(poses)))
    assert "The network contradicts the known poses" in result.notes[0]
    assert torch.allclose(result.cam_from_world, poses.float())


def test_poses_without_usable_prediction_still_hold(room: Room) -> None:
    broken = replace(
        room.truth, cam_from_world=torch.full_like(room.truth.cam_from_world, torch.nan)
    )
    poses = tuple(room.truth.cam_from_world.double())
    result = apply(room, broken, known(room, cam_from_world=poses))
    assert torch.equal(result.cam_from_world, room.truth.cam_from_world)
    assert "No photo with a known pose has a usable predicted one" in result.notes[0]


def test_intrinsics_hold_for_all_photos_of_a_camera(room: Room) -> None:
    wrong = room.truth.intrinsics.clone()
    wrong[:, :2, :2] *= 1.3
    matrices = (true_intrinsics(room), None, None, None, None)
    result = apply(room, replace(room.truth, intrinsics=wrong), known(room, intrinsics=matrices))
    assert torch.allclose(result.intrinsics, room.truth.intrinsics, atol=1e-3)
    assert not result.notes


def test_different_intrinsics_of_one_camera_are_noted(room: Room) -> None:
    other = true_intrinsics(room) * torch.tensor([[2.0], [2.0], [1.0]])
    matrices = (true_intrinsics(room), other, None, None, None)
    result = apply(room, room.truth, known(room, intrinsics=matrices))
    assert "came with different intrinsics" in result.notes[0]
    each = SceneOptions(camera_mode="per-image")
    result = apply_known(room.truth, known(room, intrinsics=matrices), room.photos, each)
    assert float(result.intrinsics[1, 0, 0]) == pytest.approx(
        2 * float(room.truth.intrinsics[1, 0, 0]), rel=1e-5
    )
    assert not result.notes


def some_depth(room: Room) -> tuple[Tensor | None, ...]:
    """The true depth of two photos, in their lower halves."""
    half = room.truth.depth.clone()
    half[:, : half.shape[1] // 2] = 0.0
    return tuple(half[i] if i in (1, 2) else None for i in range(5))


def test_depth_makes_the_scene_metric(room: Room) -> None:
    small = moved(room.truth, 0.1)
    result = apply(room, small, known(room, depth=some_depth(room)))
    assert result.scale == "metric"
    assert torch.allclose(result.depth, room.truth.depth, rtol=1e-4)
    expected = moved(room.truth, 0.1).cam_from_world[..., 3] * 10
    assert torch.allclose(result.cam_from_world[..., 3], expected, rtol=1e-3, atol=1e-3)
    best = room.truth.confidence.max()
    assert bool((result.confidence[1, -10:] == best).all())


@pytest.mark.parametrize("metric", [True, False])
def test_depth_takes_the_scale_of_the_poses(room: Room, metric: bool) -> None:
    # Poses in units of half a metre, unless they are said to be in metres.
    world = room.truth if metric else moved(room.truth, 2.0)
    poses = tuple(world.cam_from_world.double())
    what = known(room, depth=some_depth(room), cam_from_world=poses, has_metric_poses=metric)
    result = apply(room, moved(room.truth, 0.3), what)
    assert torch.allclose(result.depth, world.depth, rtol=1e-3 if metric else 5e-3)
    assert torch.allclose(result.cam_from_world, world.cam_from_world, atol=1e-5)
    assert result.scale == ("metric" if metric else "relative")
    assert not result.notes


def useless(truth: Prediction) -> Prediction:
    """A prediction that knows nothing: all cameras in a row, depth of 1."""
    poses = torch.eye(3, 4).repeat(5, 1, 1)
    poses[:, 0, 3] = torch.arange(5.0)
    return replace(truth, cam_from_world=poses, depth=torch.ones_like(truth.depth))


def test_depth_that_contradicts_metric_poses_is_noted(room: Room) -> None:
    # Centimetres taken for metres.
    depth = tuple(100 * layer for layer in room.truth.depth)
    poses = tuple(room.truth.cam_from_world.double())
    what = known(room, depth=depth, cam_from_world=poses, has_metric_poses=True)
    for prediction in (moved(room.truth, 0.3), useless(room.truth)):
        notes = apply(room, prediction, what).notes
        assert "The known depth contradicts the known poses" in notes[-1]
        assert "if it is multiplied by 0.01. Check --depth-unit" in notes[-1]
    # Poses of an unknown unit contradict nothing.
    assert not apply(room, room.truth, replace(what, has_metric_poses=False)).notes


def test_the_unit_of_poses_is_told_by_depth_and_not_by_the_network(room: Room) -> None:
    world = moved(room.truth, 2.0)
    depth = tuple(room.truth.depth)
    what = known(room, depth=depth, cam_from_world=tuple(world.cam_from_world.double()))
    result = apply(room, useless(room.truth), what)
    assert torch.allclose(result.depth, world.depth, rtol=0.01)


@pytest.mark.parametrize("metric", [True, False])
def test_depth_of_some_photos_tells_the_scale_of_the_others(room: Room, metric: bool) -> None:
    world = room.truth if metric else moved(room.truth, 2.0)
    depth = tuple(room.truth.depth[i] if i != 3 else None for i in range(5))
    poses = tuple(world.cam_from_world.double())
    what = known(room, depth=depth, cam_from_world=poses, has_metric_poses=metric)
    # The cameras of this prediction tell nothing, its depth is right but for the scale.
    prediction = replace(useless(room.truth), depth=0.3 * room.truth.depth)
    assert torch.allclose(apply(room, prediction, what).depth[3], world.depth[3], rtol=0.01)


def test_views_without_a_baseline_tell_no_scale(room: Room) -> None:
    poses = room.truth.cam_from_world[:1].repeat(5, 1, 1)
    args = (room.truth.intrinsics, room.truth.depth)
    assert find_depth_scale(poses, *args, tolerance=0.02) is None
    found = find_depth_scale(room.truth.cam_from_world, *args, tolerance=0.02)
    assert found is not None
    assert found.factor == pytest.approx(1.0, rel=0.01)
    assert not found.is_better_than_one


@pytest.mark.slow
@pytest.mark.parametrize(("name", "unit_m"), [("synth_table", 1e-4), ("synth_room", 2e-4)])
@pytest.mark.parametrize("wrong", [1.0, 10.0])
def test_views_of_rendered_scenes_tell_the_unit(
    shared: Path, name: str, unit_m: float, wrong: float
) -> None:
    folder = shared / "data" / name
    photos = frames.load(folder / "images")
    options = KnownOptions(
        intrinsics=str(folder / "gt"),
        poses=folder / "gt",
        depth=folder / "depth",
        depth_unit=wrong * unit_m,
    )
    given = load_known(options, photos)
    assert given is not None
    poses = torch.stack([pose for pose in given.cam_from_world if pose is not None])
    depth = torch.stack([layer for layer in given.depth if layer is not None])
    matrices = [
        frame.pixel_map.intrinsics_to_network(matrix)
        for frame, matrix in zip(photos.frames, given.intrinsics, strict=True)
        if matrix is not None
    ]
    assert len(poses) == len(depth) == len(matrices) == len(photos)
    found = find_depth_scale(poses, torch.stack(matrices), depth, tolerance=0.02)
    assert found is not None
    assert found.factor == pytest.approx(1 / wrong, rel=1e-3)
    assert found.is_better_than_one == (wrong != 1)


def test_depth_in_another_unit_than_the_rest_is_noted(room: Room) -> None:
    depth = [layer.clone() for layer in room.truth.depth]
    depth[3] *= 0.3048
    (note,) = apply(room, room.truth, known(room, depth=tuple(depth))).notes
    assert f"The known depth of {room.photos.names[3]} contradicts that of the other" in note
