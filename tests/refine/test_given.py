# SPDX-License-Identifier: Apache-2.0
"""What is known stays through refinement, image by image, or counts as much as asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ns_sparseattn.evaluate.pairs import pair_errors
from ns_sparseattn.frames import Frames
from ns_sparseattn.geometry import camera_centers
from ns_sparseattn.refine import Given, MatchOptions, RefineOptions, refine_scene
from ns_sparseattn.refine.cameras import with_cameras, with_poses
from ns_sparseattn.refine.given import Held
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.disturb import NEAR, SOME_WRONG, USELESS, disturb
from ns_sparseattn.testing.synthetic import SyntheticScene

OPTIONS = RefineOptions(match=MatchOptions(match_threads=1))


def poses_of(scene: Scene) -> torch.Tensor:
    return torch.stack([image.cam_from_world for image in scene.images])


def partly_known(near: Scene, truth: Scene, known: set[int]) -> Scene:
    return with_poses(near, {index: truth.images[index].cam_from_world for index in known})


def test_known_poses_stay_and_the_others_join_their_world(
    truth: Scene, frames: Frames, room: SyntheticScene
) -> None:
    near, _ = disturb(truth, NEAR, seed=0)
    start = partly_known(near, truth, {0, 3})
    given = Given(poses=frozenset({0, 3}))
    result = refine_scene(start, frames, OPTIONS, given=given, reader=room.read_rgb)
    ours, theirs = poses_of(result.scene), poses_of(truth)
    assert torch.equal(ours[[0, 3]], theirs[[0, 3]])
    assert float(pair_errors(ours, theirs).larger_deg.median()) < 0.3
    # Two known poses leave neither place nor scale open.
    extent = torch.cdist(camera_centers(theirs), camera_centers(theirs)).max()
    offset = torch.linalg.vector_norm(camera_centers(ours) - camera_centers(theirs), dim=-1)
    assert float(offset.max()) < 0.02 * float(extent)
    # The points are where these cameras see them.
    assert float(result.scene.points.error.median()) < 0.8


def test_a_known_pose_stays_also_where_matches_contradict_it(
    truth: Scene, frames: Frames, room: SyntheticScene
) -> None:
    start, (wrong,) = disturb(truth, SOME_WRONG, seed=0)
    index = [image.name for image in truth.images].index(wrong)
    given = Given(poses=frozenset({index}))
    result = refine_scene(start, frames, OPTIONS, given=given, reader=room.read_rgb)
    assert torch.equal(poses_of(result.scene)[index], start.images[index].cam_from_world)
    assert wrong in result.after.names("contradicted", "unmatched")
    assert wrong not in result.placed


def test_known_poses_tell_the_world_if_the_prediction_is_useless(
    truth: Scene, frames: Frames, room: SyntheticScene
) -> None:
    useless, _ = disturb(truth, USELESS, seed=0)
    start = with_cameras(partly_known(useless, truth, {1, 4}), truth, {1})
    given = Given(poses=frozenset({1, 4}))
    result = refine_scene(start, frames, OPTIONS, given=given, reader=room.read_rgb)
    ours, theirs = poses_of(result.scene), poses_of(truth)
    assert torch.equal(ours[[1, 4]], theirs[[1, 4]])
    assert float(pair_errors(ours, theirs).larger_deg.median()) < 0.5


@pytest.mark.parametrize("sigma", [1e-4, 10.0])
def test_known_positions_count_as_much_as_asked(
    truth: Scene, frames: Frames, room: SyntheticScene, sigma: float
) -> None:
    # Known positions that are off by five per cent of the extent.
    start, _ = disturb(truth, replace(NEAR, focal_factor=1.0), seed=0)
    given = Given(poses=frozenset(range(len(truth.images))))
    options = replace(OPTIONS, known_position_sigma=sigma)
    result = refine_scene(start, frames, options, given=given, reader=room.read_rgb)
    given_centers = camera_centers(poses_of(start))
    offset = camera_centers(poses_of(result.scene)) - given_centers
    extent = float(torch.cdist(given_centers, given_centers).max())
    share = float(torch.linalg.vector_norm(offset, dim=-1).median()) / extent
    # Firm ones bend the scene to them, loose ones leave it to the matches.
    assert (share < 0.01) == (sigma < 1.0)


def test_known_intrinsics_stay_unless_they_may_be_adjusted(
    truth: Scene, frames: Frames, room: SyntheticScene
) -> None:
    near, _ = disturb(truth, replace(NEAR, focal_factor=1.02), seed=0)
    given = Given(intrinsics=frozenset({0}))
    held = refine_scene(near, frames, OPTIONS, given=given, reader=room.read_rgb)
    assert held.scene.cameras == near.cameras
    options = replace(OPTIONS, adjust_known_intrinsics=True)
    free = refine_scene(near, frames, options, given=given, reader=room.read_rgb)
    focal = free.scene.cameras[0].named_params["f"]
    assert focal == pytest.approx(truth.cameras[0].named_params["fx"], rel=0.005)


def test_options_resolve_to_images_and_cameras(truth: Scene) -> None:
    everything = frozenset(range(len(truth.images)))
    given = Given(poses=frozenset({2}), intrinsics=frozenset({1}))
    held = Held.of(truth, given, OPTIONS)
    assert (held.poses, held.cameras, held.has_all_poses) == ({2}, {1}, False)
    loose = replace(OPTIONS, known_position_sigma=0.1, adjust_known_intrinsics=True)
    held = Held.of(truth, given, loose)
    assert (held.poses, held.cameras) == (frozenset(), frozenset())
    firm = replace(OPTIONS, hold_poses=True, hold_intrinsics=True)
    held = Held.of(truth, Given(), firm)
    assert (held.poses, held.cameras, held.has_all_poses) == (everything, {1}, True)
    with pytest.raises(ValueError, match="exclude each other"):
        replace(firm, known_position_sigma=1.0)
    with pytest.raises(ValueError, match="exclude each other"):
        replace(firm, adjust_known_intrinsics=True)
