# SPDX-License-Identifier: Apache-2.0
"""From photos to refined cameras, on a rendered room whose cameras are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ns_sparseattn.evaluate.pairs import pair_errors
from ns_sparseattn.export.colmap import import_pycolmap, to_reconstruction
from ns_sparseattn.frames import Frame, Frames
from ns_sparseattn.refine import (
    MatchOptions,
    Refined,
    RefineOptions,
    fill_points,
    refine_scene,
)
from ns_sparseattn.refine.database import open_database
from ns_sparseattn.scene import Scene, SceneOptions
from ns_sparseattn.testing.disturb import NEAR, SOME_WRONG, USELESS, disturb
from ns_sparseattn.testing.synthetic import SyntheticScene, exact_prediction

OPTIONS = RefineOptions(match=MatchOptions(match_threads=1))
SEED = 0


def median_error_deg(scene: Scene, truth: Scene) -> float:
    errors = pair_errors(poses_of(scene), poses_of(truth))
    return float(errors.larger_deg.median())


def poses_of(scene: Scene) -> torch.Tensor:
    return torch.stack([image.cam_from_world for image in scene.images])


@pytest.fixture(scope="module")
def near(truth: Scene) -> Scene:
    return disturb(truth, NEAR, seed=SEED)[0]


@pytest.fixture(scope="module")
def refined(near: Scene, frames: Frames, room: SyntheticScene) -> Refined:
    return refine_scene(near, frames, OPTIONS, reader=room.read_rgb)


def test_poses_and_focal_length_end_at_the_truth(
    refined: Refined, near: Scene, truth: Scene
) -> None:
    assert median_error_deg(near, truth) > 3.0
    assert median_error_deg(refined.scene, truth) < 0.3
    focal = refined.scene.cameras[0].named_params["f"]
    assert focal == pytest.approx(truth.cameras[0].named_params["fx"], rel=0.005)
    assert refined.scene.cameras[0].model == "SIMPLE_RADIAL"
    assert refined.source == "prediction"


def test_the_result_is_audited_and_the_errors_fell(refined: Refined) -> None:
    assert refined.after.is_trusted
    assert refined.after.names("good") == tuple(i.name for i in refined.scene.images)
    assert refined.is_refined
    assert all(s.error_after_px <= s.error_before_px for s in refined.steps if s.is_kept)
    assert float(refined.scene.points.error.median()) < 0.8
    assert refined.notes == ()


def test_the_world_stays_that_of_the_prediction(refined: Refined, near: Scene) -> None:
    # Five per cent of the extent, about which the prediction is off, at most doubled.
    from ns_sparseattn.geometry import camera_centers

    centers = camera_centers(poses_of(near))
    extent = torch.cdist(centers, centers).max()
    offset = torch.linalg.vector_norm(camera_centers(poses_of(refined.scene)) - centers, dim=-1)
    assert float(offset.median()) < 0.1 * float(extent)


def test_tracks_are_a_valid_colmap_model(refined: Refined) -> None:
    model = to_reconstruction(refined.scene)
    assert model.num_points3D() == len(refined.scene.points) > 200
    assert model.compute_mean_reprojection_error() < 1.0


def test_wrong_photos_are_found_and_placed_anew(
    truth: Scene, frames: Frames, room: SyntheticScene
) -> None:
    scene, wrong = disturb(truth, SOME_WRONG, seed=SEED)
    result = refine_scene(scene, frames, OPTIONS, reader=room.read_rgb)
    assert result.before.names("contradicted", "unmatched") == wrong
    assert result.placed == wrong
    assert median_error_deg(result.scene, truth) < 0.3
    assert wrong[0] in result.notes[0]


def test_matches_alone_decide_if_the_prediction_is_useless(
    truth: Scene, frames: Frames, room: SyntheticScene
) -> None:
    scene, _ = disturb(truth, USELESS, seed=SEED)
    result = refine_scene(scene, frames, OPTIONS, reader=room.read_rgb)
    assert result.source in ("incremental", "global")
    assert median_error_deg(result.scene, truth) < 0.3
    assert result.source in result.notes[0]


def test_cameras_that_nearly_coincide_are_no_scene(
    truth: Scene, frames: Frames, room: SyntheticScene
) -> None:
    # What a poor network says of every scene. Its neighbours agree to the tolerance of the audit.
    poses, middle = poses_of(truth), len(truth.images) // 2
    same = poses[middle].expand_as(poses).clone()
    same[:, 0, 3] += 0.02 * torch.linspace(-1.0, 1.0, len(poses), dtype=poses.dtype)
    images = tuple(
        replace(image, cam_from_world=pose) for image, pose in zip(truth.images, same, strict=True)
    )
    result = refine_scene(replace(truth, images=images), frames, OPTIONS, reader=room.read_rgb)
    assert result.after.is_trusted
    assert median_error_deg(result.scene, truth) < 0.3
    seen = torch.bincount(result.scene.points.obs_image, minlength=len(images))
    assert bool((seen >= OPTIONS.min_image_observations).all())


def test_a_blank_photo_keeps_its_pose_and_is_named(
    near: Scene, frames: Frames, room: SyntheticScene, truth: Scene
) -> None:
    blank = frames.names[3]

    def read(frame: Frame) -> Any:
        rgb = np.asarray(room.read_rgb(frame))
        return np.full_like(rgb, 255) if frame.name == blank else rgb

    result = refine_scene(near, frames, OPTIONS, reader=read)
    assert result.after.names("unmatched") == (blank,)
    assert len(result.scene.images) == len(near.images)
    assert result.after.is_trusted
    assert any(blank in note for note in result.notes)
    others = [index for index, name in enumerate(frames.names) if name != blank]
    errors = pair_errors(poses_of(result.scene)[others], poses_of(truth)[others])
    assert float(errors.larger_deg.median()) < 0.3


def test_photos_that_show_nothing_leave_the_scene_as_it_was(near: Scene, frames: Frames) -> None:
    result = refine_scene(
        near, frames, OPTIONS, reader=lambda frame: np.zeros((240, 320, 3), np.uint8)
    )
    assert result.scene is near
    assert not result.is_refined
    assert not result.after.is_trusted
    assert result.notes


def test_intrinsics_and_poses_are_held_if_asked(
    truth: Scene, frames: Frames, room: SyntheticScene
) -> None:
    options = replace(OPTIONS, hold_intrinsics=True, hold_poses=True)
    result = refine_scene(truth, frames, options, reader=room.read_rgb)
    assert result.scene.cameras == truth.cameras
    torch.testing.assert_close(poses_of(result.scene), poses_of(truth))
    assert len(result.scene.points) > 200


def test_the_database_is_kept_under_the_names_of_the_photos(
    near: Scene, frames: Frames, room: SyntheticScene, tmp_path: Path
) -> None:
    path = tmp_path / "database.db"
    first = refine_scene(near, frames, OPTIONS, database_path=path, reader=room.read_rgb)
    with open_database(path) as database:
        names = [image.name for image in database.read_all_images()]
        assert database.num_verified_image_pairs() > 0
        assert database.num_rigs() == 1
    assert sorted(names) == sorted(frames.names)
    pycolmap = import_pycolmap()
    options = pycolmap.IncrementalPipelineOptions()
    options.extract_colors = False
    options.min_model_size = 3
    options.num_threads = 1
    models = pycolmap.incremental_mapping(str(path), str(tmp_path), str(tmp_path), options)
    assert models[0].num_reg_images() == len(near.images) == len(first.scene.images)


def test_dense_points_fill_what_tracks_leave_and_lie_on_the_truth(
    refined: Refined, frames: Frames, room: SyntheticScene
) -> None:
    exact = exact_prediction(room, frames)
    # Each image's depth in a scale of its own.
    factor = torch.linspace(0.5, 2.0, len(frames))
    scaled = replace(exact, depth=exact.depth * factor[:, None, None])
    options = SceneOptions(max_points=5_000)
    filled = fill_points(refined.scene, scaled, frames, options, read_rgb=room.read_rgb)
    num_tracks = len(refined.scene.points)
    assert num_tracks + 1_000 < len(filled.points) <= 5_000
    assert int(filled.points.rgb.float().std()) > 5
    to_reconstruction(filled)
    # The tracks come first, and each dense observation sees its point where the camera puts it.
    torch.testing.assert_close(filled.points.xyz[:num_tracks], refined.scene.points.xyz)
    dense = filled.points.error[num_tracks:]
    assert float(dense.median()) < 2.0
    assert [summary.name for summary in filled.summaries] == list(frames.names)


def test_depth_that_tracks_contradict_makes_no_points(
    refined: Refined, frames: Frames, room: SyntheticScene
) -> None:
    exact = exact_prediction(room, frames)
    generator = torch.Generator().manual_seed(0)
    noise = torch.exp(1.5 * torch.randn(exact.depth[0].shape, generator=generator))
    filled = [
        fill_points(
            refined.scene,
            replace(exact, depth=exact.depth * torch.where(is_wrong, noise, 1.0)),
            frames,
            SceneOptions(),
            read_rgb=room.read_rgb,
        )
        for is_wrong in (torch.tensor(False), torch.tensor(True))
    ]
    num_tracks = len(refined.scene.points)
    assert len(filled[0].points) > num_tracks + 1_000
    assert len(filled[1].points) == num_tracks
