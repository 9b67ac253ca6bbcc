# SPDX-License-Identifier: Apache-2.0
"""The truth in the first camera's frame, and variations that keep it true."""

from __future__ import annotations

import torch

from ns_sparseattn.geometry import pixel_centers, project, transform_points
from ns_sparseattn.models.pose_encoding import decode_pose
from training.draws import Draws
from training.overlap import measure_overlap
from training.targets import make_targets, vary
from training.world import Views


def test_the_first_camera_is_the_world_and_points_are_at_distance_one(views: Views) -> None:
    targets = make_targets(views)
    identity = torch.eye(3, 4).expand(len(targets.scale), 3, 4)
    assert torch.equal(targets.cam_from_world[:, 0], identity)
    distance = targets.points_in_world.norm(dim=-1) * targets.valid
    mean = distance.sum((1, 2, 3)) / targets.valid.sum((1, 2, 3))
    torch.testing.assert_close(mean, torch.ones_like(mean), atol=1e-3, rtol=0)


def test_points_depth_and_cameras_agree(views: Views) -> None:
    targets = make_targets(views)
    in_cam = transform_points(targets.cam_from_world[:, :, None, None], targets.points_in_world)
    pixel, depth = project(in_cam, targets.intrinsics[:, :, None, None])
    mask = targets.valid
    torch.testing.assert_close(depth[mask], targets.depth[mask], atol=1e-4, rtol=1e-4)
    expected = pixel_centers(48, 64, dtype=torch.float32).expand_as(pixel)
    torch.testing.assert_close(pixel[mask], expected[mask], atol=0.02, rtol=0)


def test_encodings_are_those_of_the_network(views: Views) -> None:
    targets = make_targets(views)
    cam_from_world, intrinsics = decode_pose(targets.encodings, 48, 64)
    torch.testing.assert_close(cam_from_world, targets.cam_from_world, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(intrinsics, targets.intrinsics, atol=1e-3, rtol=1e-4)


def test_varied_scenes_are_as_consistent_as_before(views: Views) -> None:
    varied = vary(views, Draws(0, "v", torch.arange(40)))
    rotation = varied.cam_from_world[..., :3]
    assert bool((torch.linalg.det(rotation) > 0.99).all())
    is_mirrored = (varied.depth != views.depth).flatten(1).any(1)
    assert 8 < int(is_mirrored.sum()) < 32
    assert torch.equal(varied.depth[is_mirrored], views.depth[is_mirrored].flip(-1))
    # If poses were not mirrored along with photos, nothing would agree any more.
    before, after = measure_overlap(views), measure_overlap(varied)
    assert float((before - after).abs().mean()) < 0.02
    assert float((varied.images.float() - views.images.float()).abs().mean()) > 5
