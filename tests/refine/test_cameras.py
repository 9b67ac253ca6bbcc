# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ns_sparseattn.geometry import camera_centers, nearest_rotation, project, transform_points
from ns_sparseattn.refine.cameras import align, convert_cameras, transform_scene
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.disturb import NEAR, SOME_WRONG, disturb, rotation_about


def poses_of(scene: Scene) -> torch.Tensor:
    return torch.stack([image.cam_from_world for image in scene.images])


def a_similarity() -> tuple[float, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    rotation = nearest_rotation(torch.randn(3, 3, dtype=torch.float64))
    return 2.5, rotation, torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)


def test_align_recovers_a_similarity(truth: Scene) -> None:
    similarity = a_similarity()
    moved = transform_scene(truth, *similarity)
    scale, rotation, translation = align(poses_of(truth), poses_of(moved))
    assert abs(scale - similarity[0]) < 1e-9
    torch.testing.assert_close(rotation, similarity[1])
    torch.testing.assert_close(translation, similarity[2])


def test_align_is_not_led_astray_by_a_wrong_camera(truth: Scene) -> None:
    similarity = a_similarity()
    reference = poses_of(transform_scene(truth, *similarity))
    turn = torch.from_numpy(rotation_about(np.array([1.0, 0.0, 0.0]), 130.0))
    reference[3] = turn @ reference[3] + 5.0
    scale, rotation, _ = align(poses_of(truth), reference)
    assert abs(scale / similarity[0] - 1.0) < 0.05
    torch.testing.assert_close(rotation, similarity[1])


def test_align_of_cameras_on_a_line_finds_their_rotation(truth: Scene) -> None:
    poses = poses_of(truth)
    centers = torch.linspace(0.0, 1.0, len(poses), dtype=torch.float64)[:, None] * torch.ones(3)
    poses[:, :, 3] = -(poses[:, :, :3] @ centers[:, :, None].double()).squeeze(-1)
    images = tuple(replace(i, cam_from_world=p) for i, p in zip(truth.images, poses, strict=True))
    on_line = replace(truth, images=images)
    _, rotation, translation = a_similarity()
    moved = transform_scene(on_line, 1.0, rotation, translation)
    torch.testing.assert_close(align(poses, poses_of(moved))[1], rotation)


def test_a_similarity_of_the_world_changes_no_pixel(truth: Scene) -> None:
    point = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    scale, rotation, translation = a_similarity()
    moved = transform_scene(truth, scale, rotation, translation)
    intrinsics = truth.cameras[0].intrinsics
    for before, after in zip(truth.images, moved.images, strict=True):
        xy, depth = project(transform_points(before.cam_from_world, point), intrinsics)
        new_point = scale * point @ rotation.T + translation
        new_xy, new_depth = project(transform_points(after.cam_from_world, new_point), intrinsics)
        torch.testing.assert_close(xy, new_xy)
        torch.testing.assert_close(depth * scale, new_depth)


def test_camera_models_keep_what_they_share(truth: Scene) -> None:
    radial = convert_cameras(truth, "SIMPLE_RADIAL").cameras[0]
    named = truth.cameras[0].named_params
    assert radial.params == (named["fx"], named["cx"], named["cy"], 0.0)
    assert convert_cameras(convert_cameras(truth, "OPENCV"), "PINHOLE").cameras == truth.cameras


def test_disturbance_is_seeded_and_as_large_as_asked(truth: Scene) -> None:
    first, wrong = disturb(truth, NEAR, seed=3)
    again, _ = disturb(truth, NEAR, seed=3)
    assert wrong == ()
    torch.testing.assert_close(poses_of(first), poses_of(again), rtol=0.0, atol=0.0)
    centers = camera_centers(poses_of(truth))
    extent = torch.cdist(centers, centers).max()
    offset = torch.linalg.vector_norm(camera_centers(poses_of(first)) - centers, dim=-1)
    torch.testing.assert_close(offset, torch.full_like(offset, float(0.05 * extent)))
    trace = (poses_of(first)[:, :, :3] * poses_of(truth)[:, :, :3]).sum((1, 2))
    angle = torch.rad2deg(torch.acos((trace - 1.0) / 2.0))
    torch.testing.assert_close(angle, torch.full_like(angle, 3.0))
    assert len(disturb(truth, SOME_WRONG, seed=3)[1]) == 1
