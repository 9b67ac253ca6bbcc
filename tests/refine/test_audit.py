# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ns_sparseattn.refine import AuditOptions, audit_scene, contradiction
from ns_sparseattn.refine.cameras import transform_scene, with_poses
from ns_sparseattn.scene import Scene
from ns_sparseattn.testing.disturb import (
    NEAR,
    SOME_WRONG,
    USELESS,
    Disturbance,
    disturb,
    rotation_about,
)

from .conftest import MakeMatches

OPTIONS = AuditOptions()


def test_true_poses_are_good(truth: Scene, make_matches: MakeMatches) -> None:
    audit = audit_scene(truth, make_matches(truth), OPTIONS)
    assert audit.names("good") == tuple(image.name for image in truth.images)
    assert audit.is_trusted
    assert audit.num_components == 1
    assert not audit.is_rotation_only
    assert audit.epipolar_error_px < 0.5


def test_poses_that_are_near_are_weak_not_contradicted(
    truth: Scene, make_matches: MakeMatches
) -> None:
    scene, _ = disturb(truth, NEAR, seed=0)
    audit = audit_scene(scene, make_matches(truth), OPTIONS)
    assert audit.names("contradicted", "unmatched") == ()
    assert len(audit.names("weak")) >= 6
    assert not audit.is_trusted
    assert "confirmed by matches" in audit.reasons[0]


@pytest.mark.parametrize("seed", range(5))
def test_wrongly_placed_images_and_no_others_are_contradicted(
    truth: Scene, make_matches: MakeMatches, seed: int
) -> None:
    scene, wrong = disturb(truth, replace(SOME_WRONG, wrong_share=0.25), seed=seed)
    audit = audit_scene(scene, make_matches(truth), OPTIONS)
    assert len(wrong) == 2
    assert audit.names("contradicted") == wrong


def test_no_image_of_a_useless_prediction_agrees(truth: Scene, make_matches: MakeMatches) -> None:
    scene, _ = disturb(truth, USELESS, seed=0)
    audit = audit_scene(scene, make_matches(truth), OPTIONS)
    assert len(audit.names("contradicted", "unmatched")) >= len(truth.images) - 1


def test_an_image_without_matches_is_unmatched_and_the_scene_still_trusted(
    truth: Scene, make_matches: MakeMatches
) -> None:
    matches = [pair for pair in make_matches(truth) if 5 not in (pair.first, pair.second)]
    audit = audit_scene(truth, matches, OPTIONS)
    assert audit.names("unmatched") == (truth.images[5].name,)
    assert audit.images[5].epipolar_error_px is None
    assert audit.is_trusted


def test_two_places_in_one_folder_are_two_components(
    truth: Scene, make_matches: MakeMatches
) -> None:
    matches = [pair for pair in make_matches(truth) if (pair.first < 4) == (pair.second < 4)]
    audit = audit_scene(truth, matches, OPTIONS)
    assert audit.num_components == 2
    assert [image.component for image in audit.images] == [0] * 4 + [1] * (len(truth.images) - 4)
    assert not audit.is_trusted
    assert "2 groups" in audit.reasons[0]


def test_parts_that_do_not_fit_each_other_are_no_scene_to_trust(
    truth: Scene, make_matches: MakeMatches
) -> None:
    # Four and three images, each right in themselves, turned against each other by less than what
    # would contradict them; most matches of each image are with its own part.
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.from_numpy(rotation_about(np.array([0.0, 0.0, 1.0]), 12.0))
    images = [
        image if index < 4 else replace(image, cam_from_world=image.cam_from_world @ turn)
        for index, image in enumerate(truth.images)
    ]
    scene = replace(truth, images=tuple(images))
    matches = [
        pair
        for pair in make_matches(truth)
        if (pair.first < 4) == (pair.second < 4) or pair.second == pair.first + 1
    ]
    audit = audit_scene(scene, matches, OPTIONS)
    assert audit.num_components == 1
    assert audit.names("contradicted", "unmatched") == ()
    assert [image.part for image in audit.images] == [0] * 4 + [1] * 3
    assert audit.num_confirmed == 4
    assert not audit.is_trusted
    assert audit.reasons[0].startswith("The photos fall into 2 parts (4, 3 images)")


@pytest.mark.parametrize("focal_factor", [1.0, 1.1])
def test_a_camera_that_only_turned_is_recognised(
    truth: Scene, make_matches: MakeMatches, focal_factor: float
) -> None:
    center = torch.tensor([0.0, 0.0, -4.0], dtype=torch.float64)
    poses = {}
    for index in range(len(truth.images)):
        turn = rotation_about(np.array([0.0, 1.0, 0.0]), 3.0 * index - 12.0)
        rotation = torch.from_numpy(turn)
        poses[index] = torch.cat([rotation, -(rotation @ center)[:, None]], dim=1)
    turned = with_poses(truth, poses)
    still = Disturbance(rotation_deg=0.0, position_share=0.0, focal_factor=focal_factor)
    audit = audit_scene(disturb(turned, still, seed=0)[0], make_matches(turned), OPTIONS)
    assert audit.is_rotation_only
    assert not audit.is_trusted
    assert "only turned" in audit.reasons[0]


def test_no_matches_at_all_is_an_audit_too(truth: Scene) -> None:
    audit = audit_scene(truth, (), OPTIONS)
    assert len(audit.names("unmatched")) == len(truth.images)
    assert not audit.is_trusted


def test_a_model_is_held_against_a_prediction_in_any_world(truth: Scene) -> None:
    prediction, _ = disturb(truth, NEAR, seed=1)
    rotation = torch.from_numpy(rotation_about(np.array([0.0, 0.0, 1.0]), 40.0))
    elsewhere = transform_scene(truth, 3.0, rotation, torch.ones(3, dtype=torch.float64))
    assert contradiction(elsewhere, prediction, OPTIONS) is None
    folded, _ = disturb(truth, replace(NEAR, rotation_deg=15.0), seed=2)
    sentence = contradiction(folded, prediction, OPTIONS)
    assert sentence is not None
    assert "contradicts the prediction" in sentence
