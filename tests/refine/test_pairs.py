# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ns_sparseattn.frames import Frames
from ns_sparseattn.refine.options import MatchOptions
from ns_sparseattn.refine.pairs import predict_overlap, propose_pairs, sample_surface
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.disturb import NEAR, disturb, rotation_about
from ns_sparseattn.testing.synthetic import (
    SyntheticScene,
    exact_prediction,
    make_frames,
    make_room,
    true_scene,
)

OPTIONS = MatchOptions()


def test_overlap_falls_with_the_angle_between_views(
    room: SyntheticScene, frames: Frames, truth: Scene
) -> None:
    prediction = exact_prediction(room, frames)
    surface = sample_surface(truth, OPTIONS, prediction=prediction, frames=frames)
    overlap = predict_overlap(truth, surface, OPTIONS)
    torch.testing.assert_close(overlap, overlap.T)
    assert overlap.diagonal().abs().max() == 0.0
    from_first = overlap[0, 1:]
    assert from_first[0] > 0.7
    assert bool((from_first.diff() <= 0.02).all())


def test_cameras_that_look_away_from_each_other_do_not_overlap(truth: Scene) -> None:
    turn = torch.from_numpy(rotation_about(np.array([0.0, 1.0, 0.0]), 180.0))
    away = replace(truth.images[0], cam_from_world=turn @ truth.images[0].cam_from_world)
    scene = replace(truth, images=(away, *truth.images[1:]))
    overlap = predict_overlap(scene, sample_surface(truth, OPTIONS), OPTIONS)
    assert overlap[0].max() < 0.1 < overlap[1, 2]


def test_pairs_grow_linearly_and_connect_all() -> None:
    counts = []
    for num_views in (16, 32):
        room = make_room(num_views=num_views, size=(40, 30), step_deg=360.0 / num_views)
        frames = make_frames_without_photos(room)
        scene, _ = disturb(true_scene(room, frames), NEAR, seed=0)
        pairs = propose_pairs(scene, sample_surface(scene, OPTIONS), OPTIONS, pairs_per_image=4)
        assert all(first < second for first, second in pairs)
        assert connected(pairs, num_views)
        counts.append(len(pairs))
    assert counts[0] <= 16 * 4 + 16
    assert counts[1] <= 2.5 * counts[0]


def test_a_camera_that_sees_nothing_is_still_tied_to_the_rest(truth: Scene) -> None:
    surface = sample_surface(truth, OPTIONS)
    surface[2] = float("nan")
    pairs = propose_pairs(truth, surface, OPTIONS, pairs_per_image=3)
    assert any(2 in pair for pair in pairs)
    assert connected(pairs, len(truth.images))


def make_frames_without_photos(room: SyntheticScene) -> Frames:
    return make_frames(room, long_side=28)


def connected(pairs: set[tuple[int, int]], num_images: int) -> bool:
    reached, grown = {0}, True
    while grown:
        more = {b for pair in pairs for a, b in (pair, pair[::-1]) if a in reached} - reached
        reached |= more
        grown = bool(more)
    return len(reached) == num_images
